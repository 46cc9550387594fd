"""Estimate how long a job takes, and when it ends, from the run history.

Pure functions. Nothing is guessed: a part without history is unknown, and so is the total. Only the
training of a job that is not submitted yet has a published speed instead, marked as such.
"""

from collections.abc import Collection, Iterable
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from statistics import median
from typing import Any

from routing.classes import MemoryClass
from routing.queues import CPU_QUEUE, DIFFUSERS, EXTRA_ENGINES, gpu_queue, stage_queue
from tasks.contract import STAGES
from tasks.eta.history import RunHistory, WorkloadKey, workload_key
from tasks.eta.published import published_speed
from tasks.events import DatasetChecked, Event, Progress
from tasks.jobs.pipeline import PipelineConfig
from tasks.state.record import JobRecord, JobStatus

NO_RUN = "no finished run to estimate from"
TAKES_LONGER = "takes longer than the runs before it"
NO_IMAGES = "the number of images is not known yet"

_CLASS_OF = {
    gpu_queue(memory_class, engine): memory_class
    for memory_class in MemoryClass
    for engine in (DIFFUSERS, *EXTRA_ENGINES)
}


class Basis(StrEnum):
    """Where the expected duration of a stage comes from."""

    MEASURED = "measured"
    """Runs of the same workload on this fleet."""
    SCALED = "scaled"
    """Runs of the nearest workload on this fleet, scaled by samples and pixels."""
    PUBLISHED = "published"
    """A published speed of a card, as this fleet has no run to go by."""


@dataclass(frozen=True)
class StageForecast:
    """The expected wait and duration of one stage.

    Attributes:
        stage: The stage.
        queue: The queue that it waits in.
        wait_s: Seconds until it starts; None if unknown.
        waits: Number of waits in that queue that ``wait_s`` comes from.
        seconds: Seconds from its start to its end; None if unknown.
        runs: Number of runs that ``seconds`` comes from.
        scaled_from: The workload of these runs, if it is another one.
        unknown: Why ``seconds`` is unknown.
        basis: Where ``seconds`` comes from; None if it is unknown, or there is nothing to do.
        reference: Who published the speed, if it is a published one.
    """

    stage: str
    queue: str
    wait_s: float | None
    waits: int
    seconds: float | None
    runs: int = 0
    scaled_from: WorkloadKey | None = None
    unknown: str | None = None
    basis: Basis | None = None
    reference: str | None = None


@dataclass(frozen=True)
class Forecast:
    """The expected stages of a job, or of the rest of it, in their order."""

    stages: tuple[StageForecast, ...]

    @property
    def unknown(self) -> list[str]:
        """Names of the unknown parts."""
        waits = {f"wait in {stage.queue}": None for stage in self.stages if stage.wait_s is None}
        return [*waits, *(stage.stage for stage in self.stages if stage.seconds is None)]

    @property
    def at_least_s(self) -> float:
        """Sum of the known parts, in seconds."""
        return sum((stage.wait_s or 0.0) + (stage.seconds or 0.0) for stage in self.stages)

    @property
    def total_s(self) -> float | None:
        """Seconds to the end; None if a part is unknown."""
        return None if self.unknown else self.at_least_s

    def document(self) -> dict[str, Any]:
        """Return the forecast as JSON."""
        return {
            "stages": [_document(stage) for stage in self.stages],
            "total_s": self.total_s,
            "at_least_s": self.at_least_s,
            "unknown": self.unknown,
        }


@dataclass(frozen=True)
class JobProgress:
    """What a job's events report about its work.

    Attributes:
        sizes: Number of images of each training size; None before they are checked.
        progress: The newest progress event.
    """

    sizes: Collection[int] | None = None
    progress: Progress | None = None


_NO_PROGRESS = JobProgress()


def progress_of(events: Iterable[Event]) -> JobProgress:
    """Return the progress that a job's events report, given the oldest first."""
    progress = _NO_PROGRESS
    for event in events:
        if isinstance(event, DatasetChecked):
            progress = replace(progress, sizes=(event.images,))
        elif isinstance(event, Progress):
            progress = replace(progress, progress=event)
    return progress


def forecast(
    training: PipelineConfig,
    gpu_queue_name: str,
    history: RunHistory,
    sizes: Collection[int] | None = None,
) -> Forecast:
    """Estimate a job that is submitted now, as if none of its encoder outputs were cached.

    Training that this fleet cannot judge has a published speed, unless its GPU is emulated.

    Args:
        training: The job's training options.
        gpu_queue_name: The queue of its GPU stages.
        history: The fleet's run history.
        sizes: Number of images of each training size; None if the dataset was not read.
    """
    stages = []
    for stage in STAGES:
        units = units_of(training, stage, sizes)
        part = _stage(training, stage, gpu_queue_name, history, units)
        if part.unknown == NO_RUN and units is not None:
            part = _with_published_speed(part, training, history, units)
        stages.append(part)
    return Forecast(tuple(stages))


def time_left(
    record: JobRecord, history: RunHistory, now: datetime, progress: JobProgress = _NO_PROGRESS
) -> Forecast | None:
    """Estimate the rest of a job; None if it has ended, is paused, or is about to stop."""
    if record.status not in (JobStatus.QUEUED, JobStatus.RUNNING):
        return None
    training, newest = record.job.training, progress.progress
    if newest is not None and newest.stage != record.stage:
        newest = None
    parts = []
    for stage in STAGES[STAGES.index(record.stage) :]:
        queue, units = record.gpu_queue, units_of(training, stage, progress.sizes)
        if stage == "cache" and record.cache_queue == CPU_QUEUE:
            queue, units = CPU_QUEUE, 0
        if stage == record.stage and newest is not None and newest.unit != "bytes":
            units = max(0, newest.total - (newest.done if record.pending_queue else 0))
        parts.append(_stage(training, stage, queue, history, units))
    if record.pending_queue is not None:
        # Negative for a retry that is not due yet.
        waited_s = now.timestamp() - (record.due_at or record.updated_at).timestamp()
        parts[0] = _after_waiting(parts[0], history, waited_s)
    else:
        ran_s = now.timestamp() - record.stages[record.stage].started_at
        parts[0] = _after_running(parts[0], ran_s, newest)
    return Forecast(tuple(parts))


def expected_end(
    record: JobRecord, history: RunHistory, now: datetime, progress: JobProgress = _NO_PROGRESS
) -> datetime | None:
    """Return when a job ended, or is expected to end; None if unknown."""
    if record.status.ended:
        return record.updated_at
    left = time_left(record, history, now, progress)
    if left is None or left.total_s is None:
        return None
    return now.astimezone(UTC) + timedelta(seconds=left.total_s)


def units_of(
    training: PipelineConfig, stage: str, sizes: Collection[int] | None = None
) -> int | None:
    """Return the work of a stage in its units; None if it depends on unknown images.

    Args:
        training: The job's training options.
        stage: The stage.
        sizes: Number of images of each training size. With one number for all images, a job that
            counts in epochs gets slightly too few steps: no batch has images of two sizes.
    """
    match stage:
        case "publish":
            return 1
        case "train" if training.max_train_steps is not None:
            return training.max_train_steps
        case "cache" if not (training.caches_text or training.cache_vae_outputs):
            return 0
    if sizes is None:
        return None
    match stage:
        case "train":
            return (training.max_train_epochs or 0) * training.steps_per_epoch(sizes)
        case "cache":
            latents = training.cache_vae_outputs * (1 + training.loader.random_flip)
            return sum(sizes) * (latents + training.caches_text)
        case _:
            return sum(sizes)


def _stage(
    training: PipelineConfig,
    stage: str,
    gpu_queue_name: str,
    history: RunHistory,
    units: int | None,
) -> StageForecast:
    queue = stage_queue(stage, gpu_queue_name)
    waits = history.waits.get(queue, ())
    wait_s = median(waits) if waits else None
    key = workload_key(training, stage, _CLASS_OF.get(queue))
    statistics = history.statistics_for(key)
    part = StageForecast(stage, queue, wait_s, len(waits), None)
    if units == 0:
        return replace(part, seconds=0.0)
    if statistics is None or units is None:
        return replace(part, unknown=NO_RUN if statistics is None else NO_IMAGES)
    is_scaled = statistics.source.model_copy(update={"emulated": key.emulated}) != key
    return replace(
        part,
        seconds=statistics.seconds(units),
        runs=statistics.runs,
        scaled_from=statistics.source if is_scaled else None,
        basis=Basis.SCALED if is_scaled else Basis.MEASURED,
    )


def _with_published_speed(
    part: StageForecast, training: PipelineConfig, history: RunHistory, units: int
) -> StageForecast:
    """Return the forecast of a stage without runs from a published speed, if there is one."""
    key = workload_key(training, part.stage, _CLASS_OF.get(part.queue))
    speed = None if history.is_emulated(key) else published_speed(key)
    if speed is None:
        return part
    seconds = units * speed.seconds_of(key)
    return replace(
        part, seconds=seconds, unknown=None, basis=Basis.PUBLISHED, reference=speed.source
    )


def _after_waiting(part: StageForecast, history: RunHistory, waited_s: float) -> StageForecast:
    """Estimate the rest of a wait from the waits that took longer than it has so far."""
    waits = history.waits.get(part.queue, ())
    longer = [wait_s - waited_s for wait_s in waits if wait_s > waited_s]
    return replace(part, wait_s=median(longer) if longer else None, waits=len(longer))


def _after_running(part: StageForecast, ran_s: float, progress: Progress | None) -> StageForecast:
    """Estimate the rest of a running stage: from its own speed if it has one."""
    running = replace(part, wait_s=0.0, waits=0)
    if progress is not None and progress.per_second:
        left_s = max(0, progress.total - progress.done) / progress.per_second
        return replace(running, seconds=left_s, unknown=None, basis=Basis.MEASURED)
    if part.seconds is None:
        return running
    if ran_s > part.seconds:
        return replace(running, seconds=None, unknown=TAKES_LONGER, basis=None)
    return replace(running, seconds=part.seconds - ran_s)


def _document(part: StageForecast) -> dict[str, Any]:
    return {**asdict(part), "scaled_from": part.scaled_from and part.scaled_from.document()}
