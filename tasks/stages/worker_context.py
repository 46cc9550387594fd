"""What a stage needs of the worker that runs it; ``worker/worker.py`` provides it."""

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from routing.classes import MemoryClass
from routing.queues import Engine
from tasks.access.tenant_secrets import TenantSecrets
from tasks.cache.index import PackIndex
from tasks.captions.runs import CaptionRuns
from tasks.data.read_policy import ReadPolicy
from tasks.eta.history import WorkDone
from tasks.events import CacheDone, Event, TrainDone
from tasks.stages.trainer_protocol import CaptionRequest, TrainerRequest
from tasks.state.audit import Action
from tasks.state.counters import Counters
from tasks.state.job_store import JobStore
from tasks.state.record import JobRecord, StageRecord
from tasks.state.scripts import Candidates
from tasks.store import Store
from tasks.tracing.spans import Tracing
from tasks.tracking import TrackerRequest

Device = Literal["cpu", "cuda"]

# Longer delays would keep a job from a server that is back within minutes.
_MAX_DELAY_S = 600.0


class Trainer(Protocol):
    """Runs trainer requests, one at a time, in a separate process."""

    def run(
        self,
        request: TrainerRequest,
        *,
        on_event: Callable[[Event], None],
        stop_requested: Callable[[], bool],
    ) -> CacheDone | TrainDone:
        """Run a request until it ends.

        Args:
            request: What to do.
            on_event: Called in this thread with each event. An error that it raises ends the
                trainer and is raised again.
            stop_requested: Called at least once a second; True makes the trainer save a checkpoint
                and stop. An error that it raises ends the trainer and is raised again.

        Returns:
            The trainer's answer.

        Raises:
            TrainerInterrupted: It stopped on request.
            TrainerError: It failed; the message is the trainer's own, or the end of its output.
        """
        ...

    def close(self) -> None:
        """End the process that is kept for later requests."""
        ...


class CaptioningTrainer(Trainer, Protocol):
    """A trainer that writes captions, too."""

    def caption(
        self,
        request: CaptionRequest,
        *,
        on_event: Callable[[Event], None],
        stop_requested: Callable[[], bool],
    ) -> None:
        """Write captions; see ``run`` for the arguments.

        Raises:
            TrainerInterrupted: It stopped on request.
            TrainerError: It failed; the message is the trainer's own, or the end of its output.
        """
        ...


@dataclass(frozen=True)
class CaptionServices:
    """What a worker needs to write captions.

    Attributes:
        runs: The fleet's caption runs.
        trainer: Runs the model.
        counters: Count the runs' ends.
        lease_s: How long a worker that is lost keeps others from its run.
        max_bytes: The maximum size of an upload, unpacked.
    """

    runs: CaptionRuns
    trainer: CaptioningTrainer
    counters: Counters
    lease_s: float
    max_bytes: int


class Tracker(Protocol):
    """Reports a run to an experiment tracker; no method waits for it, but ``close``."""

    def send(self, message: Mapping[str, Any]) -> None:
        """Send a step with its values, unless too many wait."""

    def send_image(self, step: int, caption: str, download: Callable[[], str | None]) -> None:
        """Send an image that another thread downloads, unless too many wait."""

    def warning(self) -> str | None:
        """Return why the run is not reported any more, once; None while it is."""
        ...

    def close(self, end: str) -> None:
        """End the run, and what reports it after at most some seconds."""


class TrainerInterrupted(Exception):  # noqa: N818 - crosses the trainer's callbacks; no error
    """The trainer stopped on request; its last checkpoint was reported as an event."""


class GpuUnhealthy(Exception):  # noqa: N818 - ends a stage on this worker; no error of the job
    """The worker's GPU cannot take the job now; another worker's may."""


@dataclass(frozen=True)
class Backoff:
    """Delays between retries of a stage that hit a transient error.

    Attributes:
        max_retries: How often a stage is retried.
        first_s: The first delay in seconds; each later one is twice as long.
    """

    max_retries: int
    first_s: float

    def delay_s(self, retries: int) -> float:
        """Return the seconds to wait after N retries, with jitter so that jobs spread out."""
        nominal: float = self.first_s * 2**retries
        return min(_MAX_DELAY_S, nominal * random.uniform(0.5, 1.5))


class WorkerServices:
    """What a stage asks of its worker and of the fleet.

    These methods are those of a worker without a GPU and a fleet; ``worker/context.py`` overrides
    them.
    """

    def has_class(self, needed: MemoryClass) -> bool:
        """Return whether the worker's GPU is of this memory class or a larger one."""
        return True

    def check_gpu(self, needed_gib: float) -> None:
        """Check the worker's GPU before a stage that uses it.

        Raises:
            GpuUnhealthy: It cannot take the job now.
        """

    def dispatch_waiting(self, candidates: Candidates | None = None) -> None:
        """Send jobs that wait in tenant queues; see ``TenantQueues.dispatch``."""

    def next_larger_class(self, engine: Engine) -> MemoryClass | None:
        """Return the next class above this worker's that a live worker with this engine has."""
        return None

    def newest_versions(self) -> dict[str, int]:
        """Return the newest version of the program that serves each queue."""
        return {}

    def actor_of(self, action: Action, job_id: str) -> str | None:
        """Return who last did something to a job; None if that is not known."""
        return None

    def open_tracker(self, request: TrackerRequest) -> Tracker | None:
        """Begin to report a run; None where nothing is reported."""
        return None

    def record_run(
        self, record: JobRecord, stage: str, stage_record: StageRecord, work: WorkDone
    ) -> None:
        """Record how long a stage took, for the estimates of later jobs."""


@dataclass(frozen=True)
class WorkerContext:
    """One worker process.

    Attributes:
        name: The worker's name, for people.
        read_policy: What the jobs of this worker may read.
        device: What its trainers compute on.
        backoff: The delays between retries.
        memory_class: The class of the worker's GPU; None without a GPU.
        tracing: Sends the spans of jobs' traces.
        secrets: Tenants' secrets.
        captions: Writes captions; None where none are written.
        hub_endpoint: The Hub that results are copied to; None for the public one, or the one that
            ``HF_ENDPOINT`` names.
    """

    name: str
    device: Device
    state: JobStore
    pack_index: PackIndex
    store: Store
    trainer: Trainer
    read_policy: ReadPolicy
    downloads_dir: Path
    scratch_dir: Path
    services: WorkerServices = field(default_factory=WorkerServices)
    backoff: Backoff = Backoff(max_retries=0, first_s=1.0)
    memory_class: MemoryClass | None = None
    tracing: Tracing = field(default_factory=Tracing)
    secrets: TenantSecrets = field(default_factory=TenantSecrets)
    hub_endpoint: str | None = None
    captions: CaptionServices | None = None
