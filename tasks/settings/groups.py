"""The settings by group; each field's docstring is its documentation.

The environment variable of a field is its name in capitals, after ``TRAINING_``.
"""

from base64 import b64decode
from datetime import timedelta
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import (
    BeforeValidator,
    ByteSize,
    Field,
    SecretStr,
    ValidationInfo,
    field_validator,
)
from pydantic_settings import NoDecode

from routing.classes import GpuPrices, parse_prices
from routing.estimate import PUBLISHED, MemoryModel
from routing.fair_share import TenantShares, parse_tenant_shares
from tasks.calibration import read_calibration
from tasks.jobs.invoke import parse_patches
from tasks.process.logging_setup import LogLevel
from tasks.settings.base import Duration, Port, SettingsGroup, split_list
from tasks.state.broker_url import with_sentinel

# The minimum of the webhook specification, in bytes.
_MIN_SECRET_BYTES = 24


def _read_memory_model(path: Any) -> Any:
    """Return the memory model of a calibration file."""
    return read_calibration(Path(path)).replaced() if isinstance(path, str) else path


def _lower(value: Any) -> Any:
    return value.lower() if isinstance(value, str) else value


class StorageSettings(SettingsGroup):
    """Broker and storage."""

    broker_sentinel_master: str | None = None
    """The name under which the sentinels of `TRAINING_BROKER_URL` know their master."""

    broker_sentinel_password: SecretStr | None = None
    """The password of the sentinels themselves. Unset: they require none."""

    broker_url: SecretStr | None = None
    """The Redis 6.2+ or Valkey server that holds queues and job state: `redis://`, `rediss://` or
    `redis+socket://`; or the sentinels that know it, `sentinel://user:password@a;sentinel://b`
    (`sentinels://` with TLS). Special characters in a password are quoted, such as `%40` for `@`.
    The certificate of a `rediss://` server is checked, against `?ssl_ca_certs=` if its CA
    is not a public one; `ssl_certfile=` and `ssl_keyfile=` name the client's own. Unset: `up` and
    `demo` start a private server."""

    secrets_dir: Path | None = None
    """A folder with a file for each secret, named like its setting, such as `TRAINING_BROKER_URL`,
    which keeps secrets out of the environment. The environment takes precedence. In its folder
    `tenants/TENANT` are the secrets that this tenant's jobs may name, such as a token for the Hub.
    Unset: none."""

    home: Path = Path("~/.training-worker")
    """The folder of everything this machine keeps: the embedded broker, the default store, logs."""

    store_url: str | None = None
    """The store of datasets, cache, checkpoints and results: `file://`, `s3://`, `gs://`, `az://`.
    Every worker must reach it. Unset: a folder in `TRAINING_HOME`."""

    scratch_dir: Path | None = None
    """The folder of downloads, and of files that trainers make before they are stored. Unset: a
    folder in `TRAINING_HOME`."""

    @field_validator("broker_url")
    @classmethod
    def _complete_broker_url(cls, url: SecretStr | None, info: ValidationInfo) -> SecretStr | None:
        if url is None:
            return None
        password: SecretStr | None = info.data.get("broker_sentinel_password")
        return SecretStr(
            with_sentinel(
                url.get_secret_value(),
                info.data.get("broker_sentinel_master"),
                password.get_secret_value() if password else None,
            )
        )

    @field_validator("secrets_dir")
    @classmethod
    def _check_secrets_dir(cls, folder: Path | None) -> Path | None:
        if folder is not None and not folder.is_dir():
            raise ValueError(f"{folder} is not a folder")
        return folder

    @property
    def home_dir(self) -> Path:
        """The home folder, absolute."""
        return self.home.expanduser().absolute()

    @property
    def logs_dir(self) -> Path:
        """The folder of the log files of ``up``."""
        return self.home_dir / "logs"

    @property
    def resolved_store_url(self) -> str:
        """The store's URL."""
        return self.store_url or (self.home_dir / "store").as_uri()

    @property
    def resolved_scratch_dir(self) -> Path:
        """The scratch folder, absolute."""
        return (self.scratch_dir or self.home_dir / "scratch").expanduser().absolute()

    @property
    def downloads_dir(self) -> Path:
        """The folder of downloaded datasets."""
        return self.resolved_scratch_dir / "downloads"


class JobSettings(SettingsGroup):
    """Jobs and queues."""

    job_ttl: Duration = timedelta(days=30)
    """How long a job's state and events are kept after its end."""

    audit_retention: Duration = timedelta(days=90)
    """How long the broker keeps the audit log, 50,000 entries at most. The store keeps a copy of
    all, in `audit/`."""

    visibility_timeout: Duration = timedelta(seconds=60)
    """How long after a worker is lost its job goes to another worker. Live workers renew their
    leases four times as often, so jobs may run for any time."""

    max_retries: int = Field(default=6, ge=0)
    """How often a stage that hit a transient error, such as an unavailable store, is retried before
    the job fails. No worker waits meanwhile; each delay is twice the one before, up to 10
    minutes."""

    retry_backoff: Duration = timedelta(seconds=10)
    """The first of these delays, on average."""

    tenant_shares: str | None = None
    """The tenants' shares of scarce GPUs: `tenant=weight`, or `tenant=weight:limit` with the
    maximum of its jobs at a time, separated by commas; `*` is every other tenant. The same on all
    workers, such as `acme=3,zoo=1:4,*=1:8`. Unset: equal shares."""

    gpu_prices: str | None = None
    """The price of a GPU hour by class, such as `24gb=0.6,40gb=1.8,currency=EUR`; the currency may
    be left out. Workers record what each job costs, by the class of its queue and the price when a
    stage begins, and the console's preview estimates it. The same everywhere. Unset: no costs."""

    calibration: Annotated[MemoryModel | None, NoDecode, BeforeValidator(_read_memory_model)] = None
    """A file from `training-worker calibrate`: its constants replace the published ones in
    estimates of GPU memory. It counts where jobs are submitted: on the machines that run
    `training-worker submit` and, for a backend's jobs, the CPU workers. Unset: published ones."""

    @field_validator("tenant_shares")
    @classmethod
    def _check_tenant_shares(cls, text: str | None) -> str | None:
        parse_tenant_shares(text or "")
        return text

    @field_validator("gpu_prices")
    @classmethod
    def _check_gpu_prices(cls, text: str | None) -> str | None:
        parse_prices(text or "")
        return text

    def prices(self) -> GpuPrices:
        """Return what GPUs cost."""
        return parse_prices(self.gpu_prices or "")

    def shares_by_tenant(self) -> TenantShares:
        """Return the tenants' shares."""
        return parse_tenant_shares(self.tenant_shares or "")

    @property
    def constants(self) -> MemoryModel:
        """The constants of GPU memory estimates."""
        return self.calibration or PUBLISHED


class DataSettings(SettingsGroup):
    """Datasets."""

    data_roots: str | None = None
    """The folders and prefixes, such as `s3://bucket/people`, that datasets may be in besides
    public `https://` addresses, separated by commas. Unset: anywhere with the embedded broker,
    whose users are this machine's own; nowhere with `TRAINING_BROKER_URL`."""

    data_hosts: str | None = None
    """Hosts that datasets may be fetched from although their addresses are not public, or over
    `http://`: `name` or `name:port`, separated by commas."""

    data_max_bytes: ByteSize = ByteSize(50_000_000_000)
    """The maximum size of a dataset, both packed and unpacked. Downloads are kept in
    `TRAINING_SCRATCH_DIR` for later jobs, in at most twice this size."""


class WorkerSettings(SettingsGroup):
    """Workers and their GPUs."""

    gpus: str | None = None
    """A declared inventory, emulated on the CPU, in place of the driver's report, such as
    `40gb,24gb`."""

    cuda_visible_devices: str | None = Field(default=None, validation_alias="CUDA_VISIBLE_DEVICES")
    """The GPUs to use, as CUDA itself reads it: indices in the order of `nvidia-smi`, or UUIDs,
    separated by commas. Unset: all."""

    shutdown_timeout: Duration = timedelta(seconds=60)
    """How long a stopping worker waits for its trainer to save a checkpoint."""

    preemption_source: str | None = None
    """What announces that this machine is about to be preempted; the worker then saves a
    checkpoint, releases its job and stops. A file that appears; an address that answers 404
    before and 200, with anything but `FALSE` or `NONE`, then; or `aws` or `gcp` for their spot
    instances. Unset: only a signal stops a worker."""

    read_ahead: bool = True
    """Whether a GPU worker reads the base model of its next job from disk into the page cache while
    a job computes, at most 200 MB a second and only into memory that the job leaves free."""


class TrainerSettings(SettingsGroup):
    """Trainer processes."""

    trainer_restarts: int = Field(default=2, ge=0)
    """How often a crashed trainer is restarted, from its last checkpoint, before the job fails."""

    trainer_max_requests: int = Field(default=32, ge=1)
    """How many requests a trainer process serves, with its base model loaded, before it is
    replaced. 1 starts a process for each."""

    trainer_idle_timeout: Duration = timedelta(minutes=10)
    """How long a trainer process is kept without a request before it ends and frees its GPU
    memory."""

    trainer_heartbeat_timeout: Duration = timedelta(minutes=30)
    """How long a trainer may send no event before it counts as hung and is restarted from its
    checkpoint. Longer than its longest step, and than loading or downloading the base model."""

    trainer_max_memory: ByteSize | None = None
    """The maximum host memory of a trainer and its children, such as `48GiB`; a trainer that uses
    more fails its job. Unset: no limit."""

    stage_timeout: Duration | None = None
    """The maximum duration of a GPU stage on one worker; then its trainer saves a checkpoint and
    the job fails. Unset: no limit."""

    invoke_python: Path | None = None
    """The Python of an environment with invoke-training: GPU workers then accept jobs with
    `engine: invoke-training`. Unset: the one that `training-worker engines install` made in
    `TRAINING_HOME`; without it, such jobs wait for a worker that has it."""

    invoke_patches: str = "all"
    """The bugs of that library that are patched: `all`, `none`, or names to leave out, such as
    `-noise,-buckets`; `training-worker engines` lists them. For comparison only."""

    @field_validator("invoke_patches")
    @classmethod
    def _check_invoke_patches(cls, text: str) -> str:
        parse_patches(text)
        return text


class WebhookSettings(SettingsGroup):
    """Webhooks."""

    webhook_url: str | None = None
    """The address that receives the end of each job, in the form of standardwebhooks.com:
    `https://`, or `http://` on this machine. Unset: no webhooks."""

    webhook_secrets: Annotated[SecretStr | None, Field(validate_default=True)] = None
    """The secrets that sign webhooks, `whsec_` and base64; several, separated by commas, let the
    receiver rotate them."""

    webhook_hosts: str | None = None
    """Hosts that jobs' own webhooks may be sent to although their addresses are not public: `name`
    or `name:port`, separated by commas. Unset: none."""

    webhook_rate_limit: int = Field(default=120, ge=1)
    """The maximum deliveries a minute of all jobs' own webhooks of a tenant; others wait."""

    @field_validator("webhook_url")
    @classmethod
    def _check_webhook_url(cls, url: str | None) -> str | None:
        parts = urlsplit(url or "https://unset")
        is_local = parts.hostname in ("localhost", "127.0.0.1", "::1")
        schemes = ("https", "http") if is_local else ("https",)
        if not parts.hostname or parts.scheme not in schemes:
            raise ValueError("is neither an https:// address nor http:// on this machine")
        return url

    @field_validator("webhook_secrets")
    @classmethod
    def _check_webhook_secrets(
        cls, secrets: SecretStr | None, info: ValidationInfo
    ) -> SecretStr | None:
        entries = split_list(secrets.get_secret_value() if secrets else None)
        if info.data.get("webhook_url") and not entries:
            raise ValueError("is required with TRAINING_WEBHOOK_URL")
        for number, secret in enumerate(entries, start=1):
            try:
                decoded = b64decode(secret.removeprefix("whsec_"), validate=True)
            except ValueError:
                decoded = b""
            if not secret.startswith("whsec_") or len(decoded) < _MIN_SECRET_BYTES:
                raise ValueError(
                    f"secret {number} is not whsec_ and the base64 of {_MIN_SECRET_BYTES} or more "
                    "bytes"
                )
        return secrets

    @property
    def allowed_webhook_hosts(self) -> frozenset[str]:
        """The hosts of jobs' own webhooks whose addresses need not be public."""
        return frozenset(split_list(self.webhook_hosts))

    def webhook_signing_secrets(self) -> tuple[str, ...]:
        """Return the secrets that sign webhooks, the first one first."""
        return split_list(self.webhook_secrets.get_secret_value() if self.webhook_secrets else None)


class ConsoleSettings(StorageSettings):
    """Console and API."""

    console_port: Port = 8080
    """The port of the web console and its API. 0 starts no console."""

    console_address: str = "127.0.0.1"
    """The address that the console listens on. Use a non-loopback address only behind a TLS
    proxy."""

    console_url: str | None = None
    """The public address of the console behind a proxy, such as `https://gpu.example.org/training`;
    the proxy strips the path. Flower's pages link to it. Unset: people open the console directly,
    by an IP address, `localhost` or a name in `TRAINING_ALLOWED_HOSTS`."""

    allowed_hosts: str | None = None
    """The host names that the console, Flower and the metrics answer to besides IP addresses,
    `localhost` and the host of `TRAINING_CONSOLE_URL`, separated by commas. They refuse any other
    name, so that no other site's page reaches them by DNS rebinding. Unset: none."""

    trusted_proxies: str | None = None
    """The addresses or networks of the proxies whose `X-Forwarded-For` the console believes, such
    as `10.0.0.0/8`, separated by commas. It counts wrong logins by address. Unset: none."""

    api_keys: Path | None = None
    """The file of the console's API keys, which `training-worker keys` writes: their digests, names
    and tenants. Unset: `api-keys.json` in `TRAINING_HOME`."""

    console_dir: Path | None = None
    """The folder of uploads that are not complete, of images in open forms, and of thumbnails.
    Several consoles behind a proxy share it, such as by NFS, and the file of API keys too. Unset:
    `console` in `TRAINING_HOME`."""

    demo_dir: Path | None = None
    """The folder of the demo that the console offers to operators as "Try it": a short job
    with a miniature model, which `python -P -m worker.local.demo FOLDER` makes. Every worker must
    reach it. Unset: `up` uses `demo` in `TRAINING_HOME` where its GPUs are emulated or below 40 GB;
    other consoles offer none."""

    api_rate_limit: int = Field(default=600, ge=1)
    """The maximum requests a minute of an API key and of the browsers that logged in with it, in
    all consoles of a broker together."""

    upload_max_bytes: ByteSize = ByteSize(5_000_000_000)
    """The maximum size of one upload to the console; the unfinished uploads of a tenant may take
    four times as much. They are kept in `TRAINING_CONSOLE_DIR` until they are complete, a day at
    most, and then in the store for `TRAINING_JOB_TTL`."""

    upload_quota: ByteSize = ByteSize(100_000_000_000)
    """The maximum size of all uploads of a tenant, unfinished ones included."""

    tenant_roots: str | None = None
    """The folders and prefixes, such as `s3://bucket/people`, that jobs with a tenant's API key may
    name as dataset or model besides uploads, Hub ids and public `https://` addresses, separated by
    commas. Unset: none."""

    @field_validator("console_url")
    @classmethod
    def _check_console_url(cls, url: str | None) -> str | None:
        parts = urlsplit(url or "https://unset")
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query:
            raise ValueError("is not an https:// or http:// address")
        return url

    @field_validator("trusted_proxies")
    @classmethod
    def _check_trusted_proxies(cls, text: str | None) -> str | None:
        for network in split_list(text):
            ip_network(network)
        return text

    @property
    def host_names(self) -> frozenset[str]:
        """The host names that are answered besides ``localhost`` and IP addresses."""
        public = urlsplit(self.console_url or "").hostname
        names = (*split_list(self.allowed_hosts), public or "localhost")
        return frozenset(name.lower() for name in names)

    @property
    def listed_trusted_proxies(self) -> tuple[str, ...]:
        """The addresses and networks of trusted proxies."""
        return split_list(self.trusted_proxies)

    @property
    def listed_tenant_roots(self) -> tuple[str, ...]:
        """What a tenant's job may name besides public addresses."""
        return split_list(self.tenant_roots)

    @property
    def api_keys_file(self) -> Path:
        """The file of API keys."""
        return (self.api_keys or self.home_dir / "api-keys.json").expanduser().absolute()

    @property
    def resolved_console_dir(self) -> Path:
        """The folder of the console's files, absolute."""
        return (self.console_dir or self.home_dir / "console").expanduser().absolute()

    @property
    def console_base_url(self) -> str:
        """The console's address for people, without a trailing slash."""
        host = f"[{self.console_address}]" if ":" in self.console_address else self.console_address
        return (self.console_url or f"http://{host}:{self.console_port}").rstrip("/")

    @property
    def console_key_file(self) -> Path:
        """The file of the key with which this machine's operator opens the console."""
        return self.home_dir / "console-key"


class ObservabilitySettings(SettingsGroup):
    """Flower, metrics and logs."""

    flower_port: Port = 5555
    """Flower's port. 0 starts no Flower."""

    flower_address: str = "127.0.0.1"
    """The address that Flower listens on. Its `/metrics` requires no password: on a non-loopback
    address, guard it by a proxy or a network policy."""

    flower_prefix: Annotated[str | None, Field(pattern=r"^[\w-]+(/[\w-]+)*$")] = None
    """The path of Flower behind a reverse proxy, such as `ops/flower`. Flower's `/metrics` and
    `/healthcheck` require no password, so the proxy should not pass them on. Unset: none."""

    flower_basic_auth: SecretStr | None = None
    """Flower's `user:password`. Unset: user `operator`, and a password generated once and kept in
    `TRAINING_HOME/flower-password`."""

    flower_read_only: bool = True
    """Whether Flower shows no buttons and its API changes nothing. With `false`, Flower can make
    workers drain (`Shutdown`) and send tasks; workers refuse its other commands in any case."""

    metrics_port: Port = 0
    """The port of the fleet's metrics for Prometheus. 0 serves no metrics."""

    metrics_address: str = "127.0.0.1"
    """The address that metrics are served on. They contain the tenants' names and require no
    password."""

    log_format: Literal["text", "json"] = "text"
    """`text` for a terminal, `json` for a log collector."""

    log_level: Annotated[LogLevel, BeforeValidator(_lower)] = "info"
    """The least severe lines that are logged: `debug`, `info`, `warning` or `error`. `-v` is
    `debug` for one command, and `-q` is `warning`."""

    log_max_bytes: Annotated[ByteSize, Field(ge=0)] = ByteSize(10_000_000)
    """The maximum size of a log file. `up` keeps the newest five files of each of its processes in
    the folder `logs` of `TRAINING_HOME`, besides what it prints. 0 writes none; a process that
    `up` has not started writes none either."""
