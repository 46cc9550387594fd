"""The settings of a process, from ``TRAINING_*`` environment variables.

Or from files of these names, for secrets. Read once, in ``worker/__main__.py``, and passed on.
"""

import os
from base64 import b64decode
from datetime import timedelta
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
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SecretsSettingsSource,
    SettingsConfigDict,
)

from routing.classes import MemoryClass
from routing.estimate import PUBLISHED, MemoryModel
from routing.fair_share import TenantShares, parse_tenant_shares
from routing.prices import parse_prices
from tasks.calibration import read_calibration
from tasks.data.read_policy import ReadPolicy
from tasks.jobs.invoke import parse_patches

# What the specification of webhooks asks for.
_SHORTEST_SECRET = 24


def _seconds(value: Any) -> Any:
    """A bare number is seconds; anything else is left to pydantic (ISO 8601: ``P30D``)."""
    try:
        return timedelta(seconds=float(value)) if isinstance(value, str) else value
    except (ValueError, OverflowError):
        return value


def _listed(text: str | None) -> tuple[str, ...]:
    return tuple(part.strip() for part in (text or "").split(",") if part.strip())


def _calibrated(path: Any) -> Any:
    """What a calibration's file makes of the estimates' constants."""
    return read_calibration(Path(path)).replaced() if isinstance(path, str) else path


Duration = Annotated[timedelta, BeforeValidator(_seconds), Field(gt=timedelta(0))]


class Settings(BaseSettings):
    """Everything an operator can set; each field's docstring is its documentation."""

    model_config = SettingsConfigDict(
        env_prefix="TRAINING_", frozen=True, extra="ignore", use_attribute_docstrings=True
    )

    broker_url: SecretStr | None = None
    """The Redis 6.2+ or Valkey server that holds queues and job state: `redis://`, `rediss://` or
    `redis+socket://`. A `rediss://` server's certificate is checked, by the CA of `?ssl_ca_certs=`
    where it is no public one; `ssl_certfile=` and `ssl_keyfile=` name our own. Unset: `up` and
    `demo` start a private server."""

    secrets_dir: Path | None = None
    """A folder of files named like these settings, such as `TRAINING_BROKER_URL`, with what is not
    to be in the environment. What is in the environment goes before. Unset: none."""

    home: Path = Path("~/.training-worker")
    """The folder of everything this machine keeps: the embedded broker, the default store, logs."""

    store_url: str | None = None
    """The store of datasets, cache, checkpoints and results: `file://`, `s3://`, `gs://`, `az://`.
    Every worker must reach it. Unset: a folder in `TRAINING_HOME`."""

    scratch_dir: Path | None = None
    """Where trainers keep files on their way to the store. Unset: a folder in `TRAINING_HOME`."""

    data_roots: str | None = None
    """Where datasets may lie beside public `https://` addresses: folders and prefixes such as
    `s3://bucket/people`, with commas between. Unset: anywhere with the embedded broker, whose
    users are this machine's own; with `TRAINING_BROKER_URL` nowhere."""

    data_hosts: str | None = None
    """Hosts that datasets may be fetched from although their addresses are not public, or by
    `http://`: `name` or `name:port`, with commas between."""

    data_max_bytes: ByteSize = ByteSize(50_000_000_000)
    """The most that a dataset may take, as it comes and unpacked. Downloads are kept in
    `TRAINING_SCRATCH_DIR` for later jobs, in twice as much room."""

    gpus: str | None = None
    """A declared inventory instead of what the driver reports, for emulation on the CPU, such as
    `40gb,24gb`."""

    cuda_visible_devices: str | None = Field(default=None, validation_alias="CUDA_VISIBLE_DEVICES")
    """The GPUs that may be used, as CUDA itself reads it: indices in the order of `nvidia-smi`, or
    UUIDs, with commas between. Unset: all."""

    calibration: Annotated[MemoryModel | None, NoDecode, BeforeValidator(_calibrated)] = None
    """A file that `training-worker calibrate` made: its constants replace the published ones in
    estimates of GPU memory. It counts where jobs are submitted: on the machines that run
    `training-worker submit` and, for a backend's jobs, the CPU workers. Unset: published ones."""

    flower_port: int = Field(default=5555, ge=0, le=65535)
    """Flower's port. 0 starts no Flower."""

    flower_address: str = "127.0.0.1"
    """The address that Flower listens on. Its `/metrics` asks for no password: on another address
    than this machine's own, let a proxy or a network policy guard it."""

    flower_prefix: Annotated[str | None, Field(pattern=r"^[\w-]+(/[\w-]+)*$")] = None
    """The path below which a reverse proxy shows Flower, such as `ops/flower`. Flower's `/metrics`
    and `/healthcheck` ask for no password, so the proxy should not pass them on. Unset: none."""

    flower_basic_auth: SecretStr | None = None
    """Flower's `user:password`. Unset: user `operator`, and a password made once and kept in
    `TRAINING_HOME/flower-password`."""

    metrics_port: int = Field(default=0, ge=0, le=65535)
    """The port of the fleet's metrics for Prometheus, which `up` serves where it is set. 0:
    nowhere."""

    metrics_address: str = "127.0.0.1"
    """The address that metrics are served on. Whoever reaches it reads tenants' names."""

    console_port: int = Field(default=8080, ge=0, le=65535)
    """The port of the web console and its API. 0 starts none."""

    console_address: str = "127.0.0.1"
    """The address that the console listens on. Others than this machine's own are for servers
    behind a proxy that encrypts."""

    console_url: str | None = None
    """The address that people use where a proxy stands before the console, such as
    `https://gpu.example.org/training`; the proxy takes the path away. Flower's pages link to
    the console. Unset: the console is asked directly, and on a loopback address only under the
    names of this machine."""

    api_keys: Path | None = None
    """The file of the console's API keys, which `training-worker keys` writes: their digests, names
    and tenants. Unset: `api-keys.json` in `TRAINING_HOME`."""

    api_rate_limit: int = Field(default=600, ge=1)
    """How many requests a minute an API key may make."""

    upload_max_bytes: ByteSize = ByteSize(5_000_000_000)
    """The most that one upload to the console may take; the unfinished ones of a tenant may take
    four times as much. They are kept in `TRAINING_HOME` until they are whole, a day at most, and
    then in the store for `TRAINING_JOB_TTL`."""

    tenant_roots: str | None = None
    """What jobs that come with a tenant's API key may name as dataset or model beside uploads, Hub
    ids and public `https://` addresses: folders and prefixes such as `s3://bucket/people`, with
    commas between. Unset: nothing."""

    gpu_prices: str | None = None
    """What an hour of a GPU costs by its class, such as `24gb=0.6,40gb=1.8`: the console's previews
    tell what a job would cost. Unset: nothing is told."""

    trainer_restarts: int = Field(default=2, ge=0)
    """How often a crashed trainer is started again, from its last checkpoint, before the job
    fails."""

    trainer_max_requests: int = Field(default=32, ge=1)
    """How many requests a trainer process serves, its base model loaded, before it is replaced.
    1 starts a process for each."""

    trainer_idle_timeout: Duration = timedelta(minutes=10)
    """How long a trainer process is kept without work before it ends and frees its GPU's memory."""

    trainer_heartbeat_timeout: Duration = timedelta(minutes=30)
    """How long a trainer may give no sign of life before it counts as hung and is started again
    from its checkpoint. Longer than its longest step, and than it takes to load or download the
    base model."""

    trainer_max_memory: ByteSize | None = None
    """The most of the host's memory that a trainer and its children may take, such as `48GiB`; one
    that takes more fails its job. Unset: no limit."""

    stage_timeout: Duration | None = None
    """The most time that a GPU stage may take on one worker; then its trainer saves a checkpoint
    and the job fails. Unset: no limit."""

    shutdown_timeout: Duration = timedelta(seconds=60)
    """How long a stopping worker waits for its trainer to save a checkpoint."""

    preemption_source: str | None = None
    """Where a worker learns that its machine is about to be taken away; it then hands its job back
    from a checkpoint and ends. A file that appears, an address that answers 200 with anything but
    `FALSE` or `NONE` then and 404 before, or `aws` or `gcp` for their spot instances. Unset: only a
    signal ends a worker."""

    visibility_timeout: Duration = timedelta(seconds=60)
    """How long after a worker is lost its job goes to another one. Live workers renew their hold
    four times as often; jobs may take as long as they like."""

    max_retries: int = Field(default=6, ge=0)
    """How often a stage that met a passing fault (the store or a network away) is tried again
    before the job fails. The pauses take no worker; each is twice as long as the one before, up
    to 10 minutes."""

    retry_backoff: Duration = timedelta(seconds=10)
    """The first of these pauses, more or less."""

    job_ttl: Duration = timedelta(days=30)
    """How long a job's state and events are kept after their last change."""

    invoke_python: Path | None = None
    """The Python of an environment that holds invoke-training: GPU workers then take jobs with
    `engine: invoke-training`. Unset: such jobs wait for a worker that has it."""

    invoke_patches: str = "all"
    """The bugs of that library that are patched: `all`, `none`, or names to leave out, such as
    `-noise,-buckets`; `training-worker engines` lists them. For comparison only."""

    tenant_shares: str | None = None
    """What tenants get where GPUs are short, beside others: `tenant=weight`, or
    `tenant=weight:limit` with the most jobs of it at a time, with commas between; `*` is every
    tenant not named. The same on all workers, such as `acme=3,zoo=1:4,*=1:8`. Unset: all alike."""

    webhook_url: str | None = None
    """Where the end of each job is told, in the form of standardwebhooks.com: `https://`, or
    `http://` on this machine. Unset: nowhere."""

    webhook_secrets: Annotated[SecretStr | None, Field(validate_default=True)] = None
    """The secrets that sign webhooks, `whsec_` and base64; several with commas between, so that the
    receiver can change over from one to another."""

    log_format: Literal["text", "json"] = "text"
    """`text` for a terminal, `json` for a log collector."""

    @field_validator("invoke_patches")
    @classmethod
    def _are_patches(cls, text: str) -> str:
        parse_patches(text)
        return text

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Where settings come from, the first one first."""
        folder = os.environ.get("TRAINING_SECRETS_DIR")
        there = folder and Path(folder).is_dir()
        files = (SecretsSettingsSource(settings_cls, folder),) if there else ()
        return init_settings, env_settings, *files

    @field_validator("secrets_dir")
    @classmethod
    def _is_a_folder(cls, folder: Path | None) -> Path | None:
        if folder is not None and not folder.is_dir():
            raise ValueError(f"there is no folder {folder}")
        return folder

    @field_validator("tenant_shares")
    @classmethod
    def _are_terms(cls, text: str | None) -> str | None:
        parse_tenant_shares(text or "")
        return text

    @field_validator("console_url")
    @classmethod
    def _is_an_address(cls, url: str | None) -> str | None:
        parts = urlsplit(url or "https://unset")
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query:
            raise ValueError("is no https:// or http:// address")
        return url

    @field_validator("gpu_prices")
    @classmethod
    def _are_prices(cls, text: str | None) -> str | None:
        parse_prices(text or "")
        return text

    @field_validator("webhook_url")
    @classmethod
    def _is_safe(cls, url: str | None) -> str | None:
        parts = urlsplit(url or "https://unset")
        local = parts.hostname in ("localhost", "127.0.0.1", "::1")
        if not parts.hostname or parts.scheme not in (("https", "http") if local else ("https",)):
            raise ValueError("is no https:// address, nor http:// on this machine")
        return url

    @field_validator("webhook_secrets")
    @classmethod
    def _can_sign(cls, secrets: SecretStr | None, info: ValidationInfo) -> SecretStr | None:
        listed = _listed(secrets.get_secret_value() if secrets else None)
        if info.data.get("webhook_url") and not listed:
            raise ValueError("is needed with TRAINING_WEBHOOK_URL")
        for number, secret in enumerate(listed, start=1):
            try:
                decoded = b64decode(secret.removeprefix("whsec_"), validate=True)
            except ValueError:
                decoded = b""
            if not secret.startswith("whsec_") or len(decoded) < _SHORTEST_SECRET:
                raise ValueError(
                    f"secret {number} is not whsec_ and the base64 of {_SHORTEST_SECRET} bytes "
                    "or more"
                )
        return secrets

    def shares_by_tenant(self) -> TenantShares:
        """What tenants get."""
        return parse_tenant_shares(self.tenant_shares or "")

    def prices(self) -> dict[MemoryClass, float]:
        """What an hour of a GPU costs, by its class."""
        return parse_prices(self.gpu_prices or "")

    @property
    def listed_tenant_roots(self) -> tuple[str, ...]:
        """What a tenant's job may name beside what is public."""
        return _listed(self.tenant_roots)

    @property
    def api_keys_file(self) -> Path:
        """The file of API keys."""
        return (self.api_keys or self.home_dir / "api-keys.json").expanduser().absolute()

    @property
    def console_base_url(self) -> str:
        """The address that people find the console under, without a slash at its end."""
        host = f"[{self.console_address}]" if ":" in self.console_address else self.console_address
        return (self.console_url or f"http://{host}:{self.console_port}").rstrip("/")

    @property
    def console_key_file(self) -> Path:
        """The file of the key that this machine's operator opens the console with."""
        return self.home_dir / "console-key"

    def webhook_signing_secrets(self) -> tuple[str, ...]:
        """The secrets that sign webhooks, the first one first."""
        return _listed(self.webhook_secrets.get_secret_value() if self.webhook_secrets else None)

    @property
    def constants(self) -> MemoryModel:
        """What estimates of GPU memory are made with."""
        return self.calibration or PUBLISHED

    @property
    def home_dir(self) -> Path:
        """The home folder, absolute."""
        return self.home.expanduser().absolute()

    @property
    def resolved_store_url(self) -> str:
        """The store's URL."""
        return self.store_url or (self.home_dir / "store").as_uri()

    def data_access(self) -> ReadPolicy:
        """What datasets may be read."""
        roots = _listed(self.data_roots)
        return ReadPolicy(
            roots=roots if roots or self.broker_url else None,
            hosts=frozenset(_listed(self.data_hosts)),
            most_bytes=self.data_max_bytes,
        )

    @property
    def downloads_dir(self) -> Path:
        """The folder of datasets that were downloaded."""
        return self.resolved_scratch_dir / "downloads"

    @property
    def resolved_scratch_dir(self) -> Path:
        """The scratch folder, absolute."""
        return (self.scratch_dir or self.home_dir / "scratch").expanduser().absolute()
