"""The settings of a process, from ``TRAINING_*`` environment variables.

Read once, in ``worker/__main__.py``, and passed on.
"""

from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ByteSize, Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

from tasks.data.access import Access


def _seconds(value: Any) -> Any:
    """A bare number is seconds; anything else is left to pydantic (ISO 8601: ``P30D``)."""
    try:
        return timedelta(seconds=float(value)) if isinstance(value, str) else value
    except (ValueError, OverflowError):
        return value


def _listed(text: str | None) -> tuple[str, ...]:
    return tuple(part.strip() for part in (text or "").split(",") if part.strip())


Duration = Annotated[timedelta, BeforeValidator(_seconds), Field(gt=timedelta(0))]


class Settings(BaseSettings):
    """Everything an operator can set; each field's docstring is its documentation."""

    model_config = SettingsConfigDict(
        env_prefix="TRAINING_", frozen=True, extra="ignore", use_attribute_docstrings=True
    )

    broker_url: SecretStr | None = None
    """The Redis 6.2+ or Valkey server that holds queues and job state: `redis://`, `rediss://` or
    `redis+socket://`. Unset: `up` and `demo` start a private server."""

    home: Path = Path("~/.training-worker")
    """The folder of everything this machine keeps: the embedded broker, the default store, logs."""

    store_url: str | None = None
    """The store of data sets, cache, checkpoints and results: `file://`, `s3://`, `gs://`, `az://`.
    Every worker must reach it. Unset: a folder in `TRAINING_HOME`."""

    scratch_dir: Path | None = None
    """Where trainers keep files on their way to the store. Unset: a folder in `TRAINING_HOME`."""

    data_roots: str | None = None
    """Where data sets may lie beside public `https://` addresses: folders and prefixes such as
    `s3://bucket/people`, with commas between. Unset: anywhere with the embedded broker, whose
    users are this machine's own; with `TRAINING_BROKER_URL` nowhere."""

    data_hosts: str | None = None
    """Hosts that data sets may be fetched from although their addresses are not public, or by
    `http://`: `name` or `name:port`, with commas between."""

    data_max_bytes: ByteSize = ByteSize(50_000_000_000)
    """The most that a data set may take, as it comes and unpacked. Downloads are kept in
    `TRAINING_SCRATCH_DIR` for later jobs, in twice as much room."""

    gpus: str | None = None
    """A declared inventory instead of what the driver reports, for emulation on the CPU, such as
    `40gb,24gb`."""

    flower_port: int = Field(default=5555, ge=0, le=65535)
    """Flower's port on the loopback address. 0 starts no Flower."""

    flower_basic_auth: SecretStr | None = None
    """Flower's `user:password`. Unset: user `operator`, and a password made once and kept in
    `TRAINING_HOME/flower-password`."""

    trainer_restarts: int = Field(default=2, ge=0)
    """How often a crashed trainer is started again, from its last checkpoint, before the job
    fails."""

    trainer_requests: int = Field(default=32, ge=1)
    """How many requests a trainer process serves, its base model loaded, before it is replaced.
    1 starts a process for each."""

    trainer_idle: Duration = timedelta(minutes=10)
    """How long a trainer process is kept without work before it ends and frees its GPU's memory."""

    trainer_silence: Duration = timedelta(minutes=30)
    """How long a trainer may give no sign of life before it counts as hung and is started again
    from its checkpoint. Longer than its longest step, and than it takes to load or download the
    base model."""

    trainer_memory: ByteSize | None = None
    """The most of the host's memory that a trainer and its children may take, such as `48GiB`; one
    that takes more fails its job. Unset: no limit."""

    stage_timeout: Duration | None = None
    """The most time that a GPU stage may take on one worker; then its trainer saves a checkpoint
    and the job fails. Unset: no limit."""

    stop_grace: Duration = timedelta(seconds=60)
    """How long a stopping worker waits for its trainer to save a checkpoint."""

    visibility_timeout: Duration = timedelta(seconds=60)
    """How long after a worker is lost its job goes to another one. Live workers renew their hold
    four times as often; jobs may take as long as they like."""

    retries: int = Field(default=6, ge=0)
    """How often a stage that met a passing fault (the store or a network away) is tried again
    before the job fails. The pauses take no worker; each is twice as long as the one before, up
    to 10 minutes."""

    retry_pause: Duration = timedelta(seconds=10)
    """The first of these pauses, more or less."""

    job_ttl: Duration = timedelta(days=30)
    """How long a job's state and events are kept after their last change."""

    log_format: Literal["text", "json"] = "text"
    """`text` for a terminal, `json` for a log collector."""

    @property
    def home_dir(self) -> Path:
        """The home folder, absolute."""
        return self.home.expanduser().absolute()

    @property
    def resolved_store_url(self) -> str:
        """The store's URL."""
        return self.store_url or (self.home_dir / "store").as_uri()

    def data_access(self) -> Access:
        """What data sets may be read."""
        roots = _listed(self.data_roots)
        return Access(
            roots=roots if roots or self.broker_url else None,
            hosts=frozenset(_listed(self.data_hosts)),
            most_bytes=self.data_max_bytes,
        )

    @property
    def downloads_dir(self) -> Path:
        """The folder of data sets that were downloaded."""
        return self.resolved_scratch_dir / "downloads"

    @property
    def resolved_scratch_dir(self) -> Path:
        """The scratch folder, absolute."""
        return (self.scratch_dir or self.home_dir / "scratch").expanduser().absolute()
