"""What the body of a stage works with, and what it returns."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

import redis

from routing.queues import DIFFUSERS
from tasks.errors import CancelledJobError
from tasks.eta.history import WorkDone
from tasks.events import Event, EventRouter
from tasks.stages.event_buffer import EventBuffer
from tasks.stages.outcomes import Rerouted
from tasks.stages.telemetry import Telemetry
from tasks.stages.trainer_protocol import TrainerRequest
from tasks.stages.worker_context import WorkerContext
from tasks.state.artifacts import NO_ARTIFACTS, JobArtifacts
from tasks.state.fencing_token import FencingToken
from tasks.state.record import JobRecord, JobStatus

T = TypeVar("T")

_RECONNECT_EVERY_S = 1.0
_STOP_REQUESTS = (JobStatus.CANCELLING, JobStatus.PAUSING)


@dataclass(frozen=True)
class StageResult:
    """What a stage leaves behind.

    Attributes:
        summary: What it did, in a few words for people.
        artifacts: What later stages need of it.
        result: The job's result; the last stage's only.
        work: The work done and its rate, for the estimates of later jobs.
    """

    summary: str
    artifacts: JobArtifacts = NO_ARTIFACTS
    result: dict[str, Any] | None = None
    work: WorkDone = field(default_factory=WorkDone)


@dataclass(frozen=True)
class StageContext:
    """One start of one stage.

    Attributes:
        queue: The queue that its message came from.
        started_s: When it began, by ``time.monotonic``.
        draining: Whether the worker is shutting down.
    """

    stage: str
    token: FencingToken
    record: JobRecord
    worker: WorkerContext
    queue: str
    started_s: float
    draining: Callable[[], bool]
    events: EventBuffer
    telemetry: Telemetry

    @property
    def job_id(self) -> str:
        """The job's id."""
        return self.record.id

    @property
    def is_gpu_used(self) -> bool:
        """Whether this start has used its GPU: the job pays for the whole start then."""
        return self.telemetry.is_gpu_used

    @property
    def scratch_dir(self) -> Path:
        """The folder of this start, removed when it ends."""
        return self.worker.scratch_dir / f"{self.job_id}-{self.token.start_id}"

    def artifact(self, name: Literal["dataset", "cache_index"]) -> str:
        """Return the store key that an earlier stage left.

        Raises:
            LookupError: It left none.
        """
        key: str | None = getattr(self.record.artifacts, name)
        if key is None:
            raise LookupError(f"the job's record has no {name}")
        return key

    def emit(
        self,
        event: Event,
        artifacts: JobArtifacts = NO_ARTIFACTS,
        then: Callable[[], None] | None = None,
    ) -> None:
        """Report an event to the job's readers; see ``EventBuffer.put``.

        Raises:
            SupersededError: A newer start of this stage has taken over.
        """
        self.events.put(event, artifacts, then)

    def trainer_request(self, *, stage: Literal["cache", "train"], **fields: Any) -> TrainerRequest:
        """Return a request to the trainer on behalf of this start."""
        job = self.record.job
        self.telemetry.is_gpu_used = True
        return TrainerRequest(
            stage=stage,
            # Encoder outputs are the same for all engines: one engine computes them.
            engine=job.engine if stage == "train" else DIFFUSERS,
            job_id=self.job_id,
            start_id=self.token.start_id,
            name=job.name,
            training=self.record.training,
            dataset_key=self.artifact("dataset"),
            store_url=self.worker.store.url,
            scratch_dir=str(self.scratch_dir),
            device=self.worker.device,
            **fields,
        )

    def event_router(self, default: Callable[[Event], None] | None = None) -> EventRouter:
        """Return a router of a trainer's events: telemetry registers, ``emit`` is the default."""
        router = EventRouter(default or self.emit)
        self.telemetry.register(router)
        return router

    def stop_requested(self) -> bool:
        """Whether the stage should stop: a user stops the job, or the worker shuts down.

        An unavailable broker stops no stage.

        Raises:
            SupersededError: A newer start of this stage has taken over.
        """
        return self.draining() or self.events.requested_status() in _STOP_REQUESTS

    def until_connected(self, request: Callable[[], T]) -> T:
        """Repeat a request until the broker answers; see the function of this name."""
        return until_connected(request, self.draining)

    def check_not_cancelled(self) -> None:
        """Check that this start is the newest and that its job is not cancelled.

        Raises:
            SupersededError: A newer start of this stage has taken over.
            CancelledJobError: The job is cancelled, and nothing of it is to be published.
        """
        self.until_connected(self.events.flush)
        state, job_id = self.worker.state, self.job_id
        status = self.until_connected(lambda: state.requested_state(job_id, self.token))
        if status != JobStatus.CANCELLING:
            return
        if not self.until_connected(lambda: state.get(job_id)).save_on_cancel:
            raise CancelledJobError(self.job_id, self.stage)


def until_connected(request: Callable[[], T], draining: Callable[[], bool]) -> T:
    """Repeat a request until the broker answers: finished work must not be lost.

    Args:
        request: Asks the broker. A repeated change must have an id, as its reply may be lost.
        draining: Whether the worker is shutting down.

    Raises:
        redis.RedisError: The broker is unavailable, and the worker shuts down.
    """
    while True:
        try:
            return request()
        except (redis.ConnectionError, redis.TimeoutError):
            if draining():
                raise
            time.sleep(_RECONNECT_EVERY_S)


class StageBody(Protocol):
    """The work of one stage."""

    def __call__(self, context: StageContext) -> StageResult | Rerouted:
        """Do the work, or name the queue whose workers can do it.

        Raises:
            JobError: It failed.
            TrainerInterrupted: It stopped on request.
            SupersededError: A newer start of this stage has taken over.
        """
        ...
