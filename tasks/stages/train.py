"""The ``train`` stage: run the trainer, from the newest checkpoint where there is one."""

import logging
import time
from collections.abc import Callable, Iterable

from routing.classes import GIB
from tasks.cache.eviction import drop_damaged
from tasks.errors import ErrorCode, TrainerError
from tasks.eta.history import RateMeter, WorkDone
from tasks.events import (
    CacheDone,
    CheckpointSaved,
    Event,
    Note,
    Progress,
    TrainDone,
    ValidationImages,
)
from tasks.stages.cache import cache, packs_of
from tasks.stages.stage_context import StageContext, StageResult
from tasks.state.record import JobRecord
from tasks.strict_model import StrictModel

logger = logging.getLogger(__name__)

_MORE_THAN_ESTIMATED = 1.1
# Far less than the time after which an unused pack may be removed.
_TOUCH_EVERY_S = 600


def train(context: StageContext) -> StageResult:
    """Train, keeping what the record says of the run up to date so that any start can go on."""
    run = _Run(context)
    while True:
        try:
            done = run.to_its_end()
            break
        except TrainerError as error:
            if error.code != ErrorCode.UNREADABLE_FILE or not run.mend(error):
                raise
    resumed = f", from step {run.resumed_at}" if run.resumed_at else ""
    if not isinstance(done, TrainDone):
        raise TypeError(f"the trainer answered a train request with {done.kind}")
    _warn_of_memory(context, done.peak_memory_bytes)
    return StageResult(
        f"{done.steps} steps, loss {done.final_loss:.4f}{resumed}",
        {"trained": done.model_dump_json()},
        work=WorkDone(done.steps - run.resumed_at, run.meter.unit_s),
    )


def _warn_of_memory(context: StageContext, peak: int | None) -> None:
    """Say where a run took more of its GPU than the estimate that it was routed by."""
    estimated = context.record.estimate.needed_bytes
    if peak is None or peak <= _MORE_THAN_ESTIMATED * estimated:
        return
    message = (
        f"training took {peak / GIB:.1f} GiB of GPU memory at its peak, and the estimate was "
        f"{estimated / GIB:.1f} GiB; measure this card with 'training-worker calibrate'"
    )
    logger.warning("%s", message, extra={"job": context.job_id, "stage": context.stage})
    context.emit(Note(level="warning", message=message))


class _Run:
    """One start's run: what it goes on from, and what the record is told of it."""

    def __init__(self, context: StageContext) -> None:
        self._context = context
        refs = context.record.refs
        self._kept = checkpoints_of(refs)
        self._made = {event.step: event for event in validations_of(refs)}
        self.resumed_at = self._kept[-1].step if self._kept else 0
        self.meter = RateMeter()
        self._packs = packs_of(context)
        self._touched_at = time.monotonic()

    def to_its_end(self) -> CacheDone | TrainDone:
        """Train from the newest checkpoint."""
        request = self._context.trainer_request(
            stage="train",
            cache_index_key=self._context.record.refs["cache_index"],
            resume_state_key=self._kept[-1].state_key if self._kept else None,
        )
        self._context.telemetry.resume_from(self.resumed_at)
        return self._context.run_trainer(request, self._on_event, self._stop_requested)

    def mend(self, error: TrainerError) -> bool:
        """Do without the file that cannot be read; False where it is none of the job's own."""
        context, worker = self._context, self._context.worker
        if drop_damaged(worker.cache, worker.store, self._packs):
            message = f"{error.message}; what was damaged is encoded again"
            context.emit(Note(level="warning", message=message))
            cache(context)
            return True
        if not self._kept or self._kept[-1].state_key not in error.message:
            return False
        self._kept.pop()
        self.resumed_at = self._kept[-1].step if self._kept else 0
        message = f"{error.message}; the run goes on from step {self.resumed_at}"
        self._record("checkpoints", self._kept, Note(level="warning", message=message))
        return True

    def _stop_requested(self) -> bool:
        """Asked about twice a second: a good time to note that the cache is still in use."""
        stop = self._context.stop_requested()
        due = time.monotonic() - self._touched_at > _TOUCH_EVERY_S
        if due and not self._context.events.is_disconnected:
            self._touched_at = time.monotonic()
            self._context.worker.cache.use(self._packs)
        return stop

    def _on_event(self, event: Event) -> None:
        if isinstance(event, Progress):
            self.meter.update(event.done)
        elif not isinstance(event, CheckpointSaved):
            # Validation images, or a trainer that is started again: no part of a step.
            self.meter.pause()
        match event:
            case CheckpointSaved():
                self._checkpoint_saved(event)
            case ValidationImages():
                self._images_made(event)
            case _:
                self._context.emit(event)

    def _checkpoint_saved(self, event: CheckpointSaved) -> None:
        kept, limit = self._kept, self._context.record.job.training.max_checkpoints
        kept.append(event)
        pruned = kept[:-limit] if limit else []
        del kept[: len(pruned)]

        def prune() -> None:
            """Once it is recorded: only then does nobody need the old ones any more."""
            for old in pruned:
                files = [file.key for file in old.files]
                self._context.worker.store.delete([old.state_key, *files])

        self._record("checkpoints", kept, event, prune)

    def _images_made(self, event: ValidationImages) -> None:
        made = self._made
        replaced = made.get(event.step)
        made[event.step] = event

        def remove() -> None:
            if replaced is not None:
                # A trainer that was started again in the same attempt wrote over its own.
                new = {image.key for image in event.images}
                old = [image.key for image in replaced.images if image.key not in new]
                self._context.worker.store.delete(old)

        self._record("validations", [made[step] for step in sorted(made)], event, remove)

    def _record(
        self,
        ref: str,
        models: Iterable[StrictModel],
        event: Event,
        then: Callable[[], None] | None = None,
    ) -> None:
        lines = "\n".join(model.model_dump_json() for model in models)
        self._context.emit(event, {ref: lines}, then)


def checkpoints_of(refs: dict[str, str]) -> list[CheckpointSaved]:
    """The checkpoints a record holds, oldest first."""
    lines = refs.get("checkpoints", "").splitlines()
    return [CheckpointSaved.model_validate_json(line) for line in lines]


def trained_of(refs: dict[str, str]) -> TrainDone | None:
    """How training ended; None where it has not, or somebody cancelled it."""
    return TrainDone.model_validate_json(refs["trained"]) if "trained" in refs else None


def memory_of(record: JobRecord) -> dict[str, int | None]:
    """A job's GPU memory in bytes: as it was estimated, and the peak of its training."""
    trained = trained_of(record.refs)
    peak = trained.peak_memory_bytes if trained else None
    return {"estimated_bytes": record.estimate.needed_bytes, "peak_bytes": peak}


def validations_of(refs: dict[str, str]) -> list[ValidationImages]:
    """The validation images a record holds, by step."""
    lines = refs.get("validations", "").splitlines()
    return [ValidationImages.model_validate_json(line) for line in lines]
