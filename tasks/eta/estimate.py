"""What a job is expected to take, and when it will end, by what finished stages took.

Pure: it is given what is known. Nothing is guessed: a part that there is nothing to learn from is
unknown, and so is then the whole.
"""

from collections.abc import Collection, Iterable
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from statistics import median
from typing import Any

from routing.classes import MemoryClass
from routing.engines import DIFFUSERS, EXTRA_ENGINES
from routing.queues import CPU_QUEUE, gpu_queue, stage_queue
from tasks.contract import STAGES
from tasks.eta.history import RunHistory, WorkloadKey, work_of
from tasks.events import DatasetChecked, Event, Progress
from tasks.jobs.pipeline import PipelineConfig
from tasks.state.record import NEXT_QUEUE, JobRecord, JobStatus

NO_RUN = "no finished run to learn from"
TAKES_LONGER = "takes longer than the runs before it"
NO_IMAGES = "how many images there are is not known yet"

_CLASS_OF = {
    gpu_queue(it, engine): it for it in MemoryClass for engine in (DIFFUSERS, *EXTRA_ENGINES)
}


@dataclass(frozen=True)
class StageForecast:
    """What is expected of one stage.

    Attributes:
        stage: The stage.
        queue: Where it waits.
        wait_s: Seconds until it begins; None where not known.
        waits: How many waits in that queue this rests on.
        seconds: What it takes from then on; None where not known.
        runs: How many finished runs this rests on.
        scaled_from: The other work that they did, where it was not the very same.
        unknown: Why ``seconds`` is not known.
    """

    stage: str
    queue: str
    wait_s: float | None
    waits: int
    seconds: float | None
    runs: int = 0
    scaled_from: WorkloadKey | None = None
    unknown: str | None = None


@dataclass(frozen=True)
class Forecast:
    """What is expected of a job, or of what is left of it: its stages in their order."""

    stages: tuple[StageForecast, ...]

    @property
    def unknown(self) -> list[str]:
        """The parts that are not known."""
        waits = {f"wait in {it.queue}": None for it in self.stages if it.wait_s is None}
        return [*waits, *(it.stage for it in self.stages if it.seconds is None)]

    @property
    def at_least_s(self) -> float:
        """The sum of all that is known."""
        return sum((it.wait_s or 0.0) + (it.seconds or 0.0) for it in self.stages)

    @property
    def total_s(self) -> float | None:
        """Seconds to the end; None where a part is not known."""
        return None if self.unknown else self.at_least_s

    def document(self) -> dict[str, Any]:
        """The forecast for programs."""
        return {
            "stages": [_document(it) for it in self.stages],
            "total_s": self.total_s,
            "at_least_s": self.at_least_s,
            "unknown": self.unknown,
        }


@dataclass(frozen=True)
class JobProgress:
    """What a job's events have told of the work it has.

    Attributes:
        sizes: How many images are of each training size; None before they are checked.
        progress: The newest.
    """

    sizes: Collection[int] | None = None
    progress: Progress | None = None


_NOTHING_TOLD = JobProgress()


def told_by(events: Iterable[Event]) -> JobProgress:
    """What a job's events tell, the oldest first."""
    told = _NOTHING_TOLD
    for event in events:
        if isinstance(event, DatasetChecked):
            told = replace(told, sizes=(event.images,))
        elif isinstance(event, Progress):
            told = replace(told, progress=event)
    return told


def forecast(
    training: PipelineConfig,
    gpu_queue_name: str,
    learned: RunHistory,
    sizes: Collection[int] | None = None,
) -> Forecast:
    """What a job takes that is submitted now; all of its encoder outputs count as not cached yet.

    Args:
        training: What it trains.
        gpu_queue_name: The queue of its GPU stages.
        learned: What is known.
        sizes: How many images are of each training size; None where nobody has looked.
    """
    return Forecast(
        tuple(
            _stage(training, stage, gpu_queue_name, learned, units_of(training, stage, sizes))
            for stage in STAGES
        )
    )


def time_left(
    record: JobRecord, learned: RunHistory, now: datetime, told: JobProgress = _NOTHING_TOLD
) -> Forecast | None:
    """What is left of a job; None where it is over, or waits for somebody to let it go on."""
    if record.status not in (JobStatus.QUEUED, JobStatus.RUNNING):
        return None
    training, progress = record.job.training, told.progress
    if progress is not None and progress.stage != record.stage:
        progress = None
    parts = []
    for stage in STAGES[STAGES.index(record.stage) :]:
        queue, units = record.gpu_queue, units_of(training, stage, told.sizes)
        if stage == "cache" and record.refs.get(NEXT_QUEUE) == CPU_QUEUE:
            queue, units = CPU_QUEUE, 0
        if stage == record.stage and progress is not None and progress.unit != "bytes":
            units = max(0, progress.total - (progress.done if record.pending_queue else 0))
        parts.append(_stage(training, stage, queue, learned, units))
    if record.pending_queue is not None:
        # Less than nothing where it is not even due.
        waited_s = now.timestamp() - (record.due_at or record.updated_at).timestamp()
        parts[0] = _after_waiting(parts[0], learned, waited_s)
    else:
        ran_s = now.timestamp() - record.stages[record.stage].started_at
        parts[0] = _after_running(parts[0], ran_s, progress)
    return Forecast(tuple(parts))


def expected_end(
    record: JobRecord, learned: RunHistory, now: datetime, told: JobProgress = _NOTHING_TOLD
) -> datetime | None:
    """When a job is over: its end where it has come, else the expected one; None if not known."""
    if record.status.ended:
        return record.updated_at
    left = time_left(record, learned, now, told)
    if left is None or left.total_s is None:
        return None
    return now.astimezone(UTC) + timedelta(seconds=left.total_s)


def units_of(
    training: PipelineConfig, stage: str, sizes: Collection[int] | None = None
) -> int | None:
    """The work of a stage, in its units; None where the number of images decides it.

    Args:
        training: What is trained.
        stage: The stage.
        sizes: How many images are of each training size. One number for all is a little too
            few steps where a job counts in epochs, as no batch is of two sizes.
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
            batches = sum(-(-count // training.train_batch_size) for count in sizes)
            steps = -(-batches // training.gradient_accumulation_steps)
            return (training.max_train_epochs or 0) * steps
        case "cache":
            latents = training.cache_vae_outputs * (1 + training.loader.random_flip)
            return sum(sizes) * (latents + training.caches_text)
        case _:
            return sum(sizes)


def _stage(
    training: PipelineConfig,
    stage: str,
    gpu_queue_name: str,
    learned: RunHistory,
    units: int | None,
) -> StageForecast:
    queue = stage_queue(stage, gpu_queue_name)
    waits = learned.waits.get(queue, ())
    wait_s = median(waits) if waits else None
    work = work_of(training, stage, _CLASS_OF.get(queue))
    found = learned.figure(work)
    empty = StageForecast(stage, queue, wait_s, len(waits), None)
    if units == 0:
        return replace(empty, seconds=0.0)
    if found is None or units is None:
        return replace(empty, unknown=NO_IMAGES if found else NO_RUN)
    return replace(
        empty,
        seconds=found.seconds(units),
        runs=found.runs,
        scaled_from=None if found.learned_from == work else found.learned_from,
    )


def _after_waiting(part: StageForecast, learned: RunHistory, waited_s: float) -> StageForecast:
    """A stage that has waited so long: what those that waited longer say of the rest."""
    waits = learned.waits.get(part.queue, ())
    longer = [it - waited_s for it in waits if it > waited_s]
    return replace(part, wait_s=median(longer) if longer else None, waits=len(longer))


def _after_running(part: StageForecast, ran_s: float, progress: Progress | None) -> StageForecast:
    """A stage that has run so long: its own speed says more of the rest than other runs."""
    begun = replace(part, wait_s=0.0, waits=0)
    if progress is not None and progress.per_second:
        left_s = max(0, progress.total - progress.done) / progress.per_second
        return replace(begun, seconds=left_s, unknown=None)
    if part.seconds is None:
        return begun
    if ran_s > part.seconds:
        return replace(begun, seconds=None, unknown=TAKES_LONGER)
    return replace(begun, seconds=part.seconds - ran_s)


def _document(part: StageForecast) -> dict[str, Any]:
    return {**asdict(part), "scaled_from": part.scaled_from and part.scaled_from.document()}
