"""What a stage needs from the worker it runs in. ``worker/`` fills it in."""

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

from routing.classes import MemoryClass
from routing.engines import Engine
from tasks.cache.index import CacheRegistry
from tasks.data.read_policy import ReadPolicy
from tasks.eta.history import WorkDone
from tasks.events import CacheDone, Event, TrainDone
from tasks.stages.trainer_protocol import TrainerRequest
from tasks.state.job_store import JobStore
from tasks.state.record import JobRecord, StageRecord
from tasks.store import Store
from tasks.tracing.spans import Tracing

Device = Literal["cpu", "cuda"]
_LONGEST_PAUSE_S = 600.0


class Trainer(Protocol):
    """Runs trainer requests, one at a time, in a process of its own."""

    def run(
        self,
        request: TrainerRequest,
        *,
        on_event: Callable[[Event], None],
        stop_requested: Callable[[], bool],
    ) -> CacheDone | TrainDone:
        """Run a request to its end.

        Args:
            request: What to do.
            on_event: Called in this thread with each event as it comes. An error it raises ends
                the trainer and is raised on.
            stop_requested: Asked at least once a second; True makes the trainer save a checkpoint
                and stop. An error it raises ends the trainer and is raised on.

        Returns:
            The trainer's answer.

        Raises:
            TrainerInterrupted: It stopped because it was asked to.
            TrainerError: It failed; the message holds its own words or the end of its output.
        """
        ...

    def close(self) -> None:
        """End what is kept for later requests."""
        ...


class TrainerInterrupted(Exception):  # noqa: N818 - an outcome, not an error
    """The trainer stopped as it was asked to; its last checkpoint was told as an event."""


class GpuUnhealthy(Exception):  # noqa: N818 - an outcome, not an error
    """The worker's GPU cannot take the job now: another worker's may."""


@dataclass(frozen=True)
class Backoff:
    """How a stage that met a passing fault is tried again.

    Attributes:
        tries: How often.
        first_s: Seconds before the first try, more or less; each later pause is twice as long.
    """

    tries: int
    first_s: float

    def delay_s(self, tries: int) -> float:
        """Seconds to wait after so many tries; at random, so that jobs do not come back at once."""
        nominal: float = self.first_s * 2**tries
        return min(_LONGEST_PAUSE_S, nominal * random.uniform(0.5, 1.5))


@dataclass(frozen=True)
class WorkerContext:
    """One worker process's means.

    Attributes:
        worker: The worker's name, for people.
        device: What its trainers compute on.
        backoff: How stages that met a passing fault are tried again.
        next_larger_class: The next class above this worker's own that a live worker with this
            engine has, for a job that ran out of GPU memory here.
        check_gpu: Asked before each stage that needs the GPU, with the GiB it needs; raises
            ``GpuUnhealthy``.
        dispatch: Lets waiting jobs take the room that there is; see ``tasks/state/tenant_queues.py``.
        newest_versions: Queue to the newest version of the program that a live worker of it is of.
        learn: Told of each stage that is done; see ``RunHistoryStore.record_run``.
        memory_class: That of the worker's GPU.
        tracing: Sends the spans of jobs' traces.
    """

    state: JobStore
    cache: CacheRegistry
    store: Store
    trainer: Trainer
    access: ReadPolicy
    downloads_dir: Path
    scratch_dir: Path
    worker: str
    device: Device
    backoff: Backoff = Backoff(tries=0, first_s=1.0)
    next_larger_class: Callable[[Engine], MemoryClass | None] = lambda engine: None
    check_gpu: Callable[[float], None] = lambda needed_gib: None
    dispatch: Callable[[], object] = lambda: None
    newest_versions: Callable[[], dict[str, int]] = dict
    learn: Callable[[JobRecord, str, StageRecord, WorkDone], None] = lambda job, stage, done, made: (
        None
    )
    memory_class: MemoryClass | None = None
    tracing: Tracing = field(default_factory=Tracing)
