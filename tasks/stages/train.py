"""The ``train`` stage: run the trainer, from the newest checkpoint if there is one."""

import logging
import time
from functools import partial

from routing.classes import GIB
from tasks.cache.eviction import drop_damaged
from tasks.errors import StoreError, UnreadableFileError
from tasks.eta.history import RateMeter, WorkDone
from tasks.events import (
    Artifact,
    CheckpointSaved,
    Event,
    Note,
    Progress,
    TrainDone,
    ValidationImages,
)
from tasks.stages.cache import cache, packs_of
from tasks.stages.run_report import RunReport, reporting
from tasks.stages.stage_context import StageContext, StageResult
from tasks.state.artifacts import JobArtifacts

logger = logging.getLogger(__name__)

# Below this factor, the difference is measurement noise.
_MEMORY_WARNING_FACTOR = 1.1
# Estimates are within 5 % of what real models take; a tiny one takes next to nothing.
_TOY_SHARE = 0.25
# The record lists them, and each write of one writes the list.
_MAX_CHECKPOINTS, _MAX_IMAGES = 1000, 1000
# A store that damages file after file is an operator's problem.
_MAX_RECOVERIES = 10
# Far less than the time after which eviction may remove an unused pack.
_TOUCH_EVERY_S = 600


def train(context: StageContext) -> StageResult:
    """Train, and keep the record of the run up to date so that any later start can resume it."""
    with reporting(context) as report:
        run = _TrainingRun(context, report)
        while True:
            try:
                done = run.train()
                break
            except UnreadableFileError as error:
                if not run.recover(error):
                    raise
    _warn_of_memory(context, done.peak_memory_bytes)
    resumed = f", from step {run.resumed_at}" if run.resumed_at else ""
    return StageResult(
        f"{done.steps} steps, loss {done.final_loss:.4f}{resumed}",
        JobArtifacts(trained=done),
        work=WorkDone(
            done.steps - run.resumed_at,
            run.meter.unit_s,
            is_toy=_is_toy(context, done.peak_memory_bytes),
        ),
    )


class _TrainingRun:
    """One start's run: the checkpoint it resumes from, and what it records."""

    def __init__(self, context: StageContext, report: RunReport) -> None:
        self._context, self._report = context, report
        artifacts = context.record.artifacts
        self._checkpoints = list(artifacts.checkpoints)
        self._validations = {event.step: event for event in artifacts.validations}
        self.resumed_at = self._newest_step()
        self.meter = RateMeter()
        self._events = context.event_router(self._on_other)
        report.register(self._events)
        self._events.handle(Progress, self._on_progress)
        self._events.handle(CheckpointSaved, self._add_checkpoint)
        self._events.handle(ValidationImages, self._add_validation)
        self._packs = packs_of(context)
        self._recovered: set[str] = set()
        """The keys of damaged files that this run has recovered from."""
        self._warnings: set[str] = set()
        # Its packs may be old by the time that a job gets its GPU.
        self._touched_s = float("-inf")

    def train(self) -> TrainDone:
        """Train from the newest checkpoint.

        Raises:
            UnreadableFileError: The trainer cannot read a checkpoint or a pack.
            TrainerError: The trainer failed otherwise.
            TrainerInterrupted: It stopped on request.
        """
        request = self._context.trainer_request(
            stage="train",
            cache_index_key=self._context.artifact("cache_index"),
            resume_state_key=self._checkpoints[-1].state_key if self._checkpoints else None,
        )
        self._context.telemetry.resume_from(self.resumed_at)
        done = self._context.worker.trainer.run(
            request, on_event=self._events, stop_requested=self._stop_requested
        )
        if not isinstance(done, TrainDone):
            raise TypeError(f"the trainer answered a train request with {done.kind}")
        return done

    def recover(self, error: UnreadableFileError) -> bool:
        """Replace or drop a damaged file; False if this run cannot, or has done so before."""
        if error.file_key in self._recovered or len(self._recovered) >= _MAX_RECOVERIES:
            return False
        self._recovered.add(error.file_key)
        if error.file_key in self._packs:
            return self._encode_damaged_again(error)
        if self._checkpoints and self._checkpoints[-1].state_key == error.file_key:
            self._drop_newest_checkpoint(error)
            return True
        return False

    def _encode_damaged_again(self, error: UnreadableFileError) -> bool:
        worker = self._context.worker
        if not drop_damaged(worker.pack_index, worker.store, self._packs):
            return False
        message = f"{error.message}; damaged cache entries are encoded again"
        self._context.emit(Note(level="warning", message=message))
        cache(self._context)
        self._packs = packs_of(self._context)
        return True

    def _drop_newest_checkpoint(self, error: UnreadableFileError) -> None:
        self._checkpoints.pop()
        self.resumed_at = self._newest_step()
        message = f"{error.message}; the run resumes from step {self.resumed_at}"
        artifacts = JobArtifacts(checkpoints=tuple(self._checkpoints))
        self._context.emit(Note(level="warning", message=message), artifacts)

    def _newest_step(self) -> int:
        return self._checkpoints[-1].step if self._checkpoints else 0

    def _stop_requested(self) -> bool:
        """Keep the packs from eviction; the trainer's supervisor calls this twice a second."""
        stop = self._context.stop_requested()
        self._report.check()
        if time.monotonic() - self._touched_s > _TOUCH_EVERY_S:
            self._touched_s = time.monotonic()
            touch = partial(self._context.worker.pack_index.touch, self._packs)
            self._context.events.if_connected(touch)
        return stop

    def _on_progress(self, event: Progress) -> None:
        self.meter.update(event.done)
        self._context.emit(event)

    def _on_other(self, event: Event) -> None:
        # A note of the supervisor, such as a trainer's restart: no part of a step.
        self.meter.pause()
        self._context.emit(event)

    def _add_checkpoint(self, event: CheckpointSaved) -> None:
        """Record a checkpoint, and then remove those beyond ``max_checkpoints``."""
        wanted = self._context.record.job.training.max_checkpoints
        limit = min(wanted or _MAX_CHECKPOINTS, _MAX_CHECKPOINTS)
        # One that only a stop saved takes no other's place, and the next one replaces it.
        kept = [old for old in self._checkpoints if old.scheduled]
        surplus = max(len(kept) + 1 - limit, 0) if event.scheduled else 0
        kept = [*kept[surplus:], event]
        pruned = [old for old in self._checkpoints if old not in kept]
        self._checkpoints = kept
        if surplus and limit != wanted:
            self._warn_once(f"only the newest {limit} checkpoints are kept")
        keys = [key for old in pruned for key in (old.state_key, *(file.key for file in old.files))]
        artifacts = JobArtifacts(checkpoints=tuple(kept))
        self._context.emit(event, artifacts, lambda: self._delete(keys))

    def _add_validation(self, event: ValidationImages) -> None:
        """Record validation images, and then remove those of the same step that they replace."""
        self.meter.pause()
        replaced = self._validations.get(event.step)
        self._validations[event.step] = event
        # A trainer that restarts within an attempt overwrites its own images.
        kept = {image.key for image in event.images}
        old = [*(replaced.images if replaced else ()), *self._surplus_images()]
        keys = [image.key for image in old if image.key not in kept]
        validations = tuple(self._validations[step] for step in sorted(self._validations))
        artifacts = JobArtifacts(validations=validations)
        self._context.emit(event, artifacts, lambda: self._delete(keys))

    def _surplus_images(self) -> list[Artifact]:
        """Drop the validations of the first steps while there are too many images."""
        surplus: list[Artifact] = []
        count = sum(len(event.images) for event in self._validations.values())
        for step in sorted(self._validations)[:-1]:
            if count - len(surplus) <= _MAX_IMAGES:
                break
            surplus += self._validations.pop(step).images
        if surplus:
            self._warn_once(f"only the newest {_MAX_IMAGES} validation images are kept")
        return surplus

    def _warn_once(self, message: str) -> None:
        if message not in self._warnings:
            self._warnings.add(message)
            self._context.emit(Note(level="warning", message=message))

    def _delete(self, keys: list[str]) -> None:
        """Remove files that the record no longer names; leave them if the store fails."""
        try:
            self._context.worker.store.delete(keys)
        except StoreError as error:
            extra = {"job": self._context.job_id, "stage": self._context.stage}
            logger.warning("old files are left in the store: %s", error, extra=extra)


def _is_toy(context: StageContext, peak_bytes: int | None) -> bool:
    """Return whether the run took so little GPU memory that its base model is a tiny one."""
    estimated = context.record.estimate.needed_bytes
    return peak_bytes is not None and peak_bytes < _TOY_SHARE * estimated


def _warn_of_memory(context: StageContext, peak_bytes: int | None) -> None:
    """Warn of a run that used more GPU memory than the estimate that routed it."""
    estimated = context.record.estimate.needed_bytes
    if peak_bytes is None or peak_bytes <= _MEMORY_WARNING_FACTOR * estimated:
        return
    message = (
        f"training took {peak_bytes / GIB:.1f} GiB of GPU memory at its peak, and the estimate was "
        f"{estimated / GIB:.1f} GiB; measure this card with 'training-worker calibrate'"
    )
    logger.warning("%s", message, extra={"job": context.job_id, "stage": context.stage})
    context.emit(Note(level="warning", message=message))
