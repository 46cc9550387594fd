"""Run history: how long stages ran and jobs waited, kept in Redis, and statistics over it.

For each workload the newest runs are kept, until no run was added for a job's TTL. Statistics are
the median and the 90th percentile. A workload without runs uses those of the nearest one, in this
order:

1. the same type, memory class, resolution and samples per step;
2. another number of samples per step; seconds are scaled by it;
3. another resolution; seconds are scaled by pixels too;
4. a larger memory class, whose GPUs run the smaller class's jobs too; scaled as above, but not for
   the class.

Statistics name the workload that they come from. Without runs of the same stage and type on such a
class there are none, nor where a unit of the nearest one is less than a quarter or more than four
times the work: toy runs say nothing about real ones. Runs on emulated GPUs count for emulated GPUs
only; runs on real GPUs whose base model is far smaller than its type's are not recorded. Options
that change the speed less, such as gradient checkpointing, do not distinguish workloads. This
module imports neither Celery nor torch.
"""

import logging
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, cast

from pydantic import ValidationError
from redis import Redis, RedisError
from redis.client import Pipeline

from routing.classes import MemoryClass
from routing.queues import STAGE_QUEUES
from tasks.contract import STAGES
from tasks.jobs.pipeline import PipelineConfig
from tasks.state.record import JobRecord, StageRecord
from tasks.state.workers import emulated_classes, live_workers
from tasks.strict_model import StrictModel

logger = logging.getLogger(__name__)

UNITS = {"prepare": "image", "cache": "entry", "train": "step", "publish": "job"}
"""Stage to the unit that its work is counted in."""

_INDEX = "training:run_history"
_WAITS = "training:queue_waits:"
# Enough for a 90th percentile. Older runs may come from other GPUs or other versions.
_MAX_RUNS = 50
# Beyond this factor, other things than pixels and samples decide how long a unit takes.
_MAX_SCALE = 4.0


@dataclass(frozen=True)
class WorkDone:
    """The work of one run of a stage.

    Attributes:
        units: Number of units.
        unit_s: Seconds per unit; None if the stage did not measure it.
        is_toy: Whether the base model was far smaller than models of its type.
    """

    units: int = 0
    unit_s: float | None = None
    is_toy: bool = False


class RateMeter:
    """Measures seconds per unit between reports of the number of units done.

    Args:
        clock: Monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._last: tuple[int, float] | None = None
        self._units, self._seconds = 0, 0.0

    def update(self, done: int) -> None:
        """Report the number of units done; a smaller one than before means a restart."""
        now = self._clock()
        if self._last is not None and done > self._last[0]:
            self._units += done - self._last[0]
            self._seconds += now - self._last[1]
        self._last = (done, now)

    def pause(self) -> None:
        """Leave out the time until the next report: the stage does other work."""
        self._last = None

    @property
    def unit_s(self) -> float | None:
        """Seconds per unit; None before the second report."""
        return self._seconds / self._units if self._units else None


class WorkloadKey(StrictModel):
    """What decides how long a unit of a stage takes."""

    stage: str
    type: str
    """The training type."""
    memory_class: MemoryClass | None = None
    """The GPU's memory class; null for stages that need no GPU."""
    size: tuple[int, int] | None = None
    """Target width and height; null for stages that need no GPU."""
    samples: int = 1
    """Samples per step."""
    emulated: bool = False
    """Whether the GPU is emulated on a CPU."""

    def relative_cost(self, other: "WorkloadKey") -> float:
        """Return how many times longer a unit of this workload takes than one of the other."""
        return self._pixels / other._pixels * self.samples / other.samples

    def distance(self, other: "WorkloadKey") -> tuple[int, float, float]:
        """Return the distance to another workload's statistics, comparable as a tuple."""
        return (
            (other.memory_class or 0) - (self.memory_class or 0),
            abs(math.log(self._pixels / other._pixels)),
            abs(math.log(self.samples / other.samples)),
        )

    def document(self) -> dict[str, Any]:
        """Return the workload as JSON."""
        return {
            "stage": self.stage,
            "type": self.type,
            "memory_class": None if self.memory_class is None else str(self.memory_class),
            "resolution": self.resolution,
            "samples": self.samples,
            "emulated": self.emulated,
        }

    @property
    def resolution(self) -> str | None:
        """The size as text, like ``1024x768``."""
        return None if self.size is None else "x".join(map(str, self.size))

    @property
    def _pixels(self) -> int:
        return math.prod(self.size or (1,))


class RunSample(StrictModel):
    """The measured time of one run of a stage."""

    unit_s: float
    """Seconds per unit."""
    overhead_s: float
    """Seconds of everything else, such as loading the base model."""


@dataclass(frozen=True)
class RunStatistics:
    """Statistics over the runs of a workload.

    Attributes:
        unit_s: Seconds per unit, the median.
        unit_s_p90: Seconds per unit, the 90th percentile.
        overhead_s: Seconds of everything else, the median.
        runs: Number of runs.
        source: The workload of the runs; if it is another one, the seconds are scaled.
    """

    unit_s: float
    unit_s_p90: float
    overhead_s: float
    runs: int
    source: WorkloadKey

    def seconds(self, units: int) -> float:
        """Return the expected seconds for this number of units."""
        return self.overhead_s + units * self.unit_s


@dataclass(frozen=True)
class RunHistory:
    """The run history of a fleet.

    Attributes:
        runs: Workload to its runs, the newest first.
        waits: Queue to the seconds that stages waited in it, the newest first.
        emulated: The classes of which the fleet has emulated GPUs only.
    """

    runs: Mapping[WorkloadKey, Sequence[RunSample]]
    waits: Mapping[str, Sequence[float]]
    emulated: frozenset[MemoryClass] = frozenset()

    def all_statistics(self) -> list[RunStatistics]:
        """Return the statistics of every workload that has runs."""
        return [_statistics(key, key, runs) for key, runs in self.runs.items()]

    def is_emulated(self, key: WorkloadKey) -> bool:
        """Return whether a workload would run on an emulated GPU."""
        return key.emulated or key.memory_class in self.emulated

    def statistics_for(self, key: WorkloadKey) -> RunStatistics | None:
        """Return the statistics of a workload, or of the nearest one; None without any."""
        key = key.model_copy(update={"emulated": self.is_emulated(key)})
        candidates = [
            candidate
            for candidate in self.runs
            if (candidate.stage, candidate.type) == (key.stage, key.type)
            and (candidate.memory_class or 0) >= (key.memory_class or 0)
            and candidate.emulated == key.emulated
            and 1 / _MAX_SCALE <= key.relative_cost(candidate) <= _MAX_SCALE
        ]
        if not candidates:
            return None
        nearest = min(candidates, key=key.distance)
        return _statistics(key, nearest, self.runs[nearest])


class RunHistoryStore:
    """Keeps the run history of a fleet in Redis.

    Args:
        client: A connection to Redis that decodes responses.
        ttl: How long the runs of a workload are kept after the last one.
        memory_class: The memory class of this worker's GPU.
        emulated: Whether that GPU is emulated.
    """

    def __init__(
        self,
        client: Redis,
        ttl: timedelta,
        memory_class: MemoryClass | None = None,
        *,
        emulated: bool = False,
    ) -> None:
        self._redis, self._ttl, self._memory_class = client, ttl, memory_class
        self._emulated = emulated

    def record_run(
        self, job: JobRecord, stage: str, finished: StageRecord, work_done: WorkDone
    ) -> None:
        """Add a finished stage to the history. An unavailable broker only costs this entry."""
        key = workload_key(job.job.training, stage, self._memory_class)
        key = key.model_copy(update={"emulated": self._emulated and key.memory_class is not None})
        run = _sample(key, finished.seconds or 0.0, work_done)
        wait_s = queue_wait_s(job, stage, finished)
        try:
            with self._redis.pipeline(transaction=False) as pipe:
                if run is not None:
                    self._add_run(pipe, key, run, finished.started_at + (finished.seconds or 0.0))
                if wait_s is not None:
                    self._push(pipe, f"{_WAITS}{finished.queue}", f"{wait_s:.3f}")
                pipe.execute()
        except RedisError as error:
            extra = {"job": job.id, "stage": stage}
            logger.warning("cannot record the run of %s: %s", stage, error, extra=extra)

    def read(self) -> RunHistory:
        """Return the whole history."""
        members = sorted(cast("list[str]", self._redis.zrange(_INDEX, 0, -1)))
        with self._redis.pipeline(transaction=False) as pipe:
            for member in members:
                pipe.lrange(f"{_INDEX}:{member}", 0, -1)
            for queue in STAGE_QUEUES:
                pipe.lrange(f"{_WAITS}{queue}", 0, -1)
            lists = cast("list[list[str]]", pipe.execute())
        run_lists, wait_lists = lists[: len(members)], lists[len(members) :]
        runs = {}
        for member, values in zip(members, run_lists, strict=True):
            try:
                key = WorkloadKey.model_validate_json(member)
                samples = [RunSample.model_validate_json(value) for value in values]
            except ValidationError:
                logger.warning("ignoring the run history of another version: %s", member)
                continue
            if samples:
                runs[key] = samples
        waits = {
            queue: [float(value) for value in values]
            for queue, values in zip(STAGE_QUEUES, wait_lists, strict=True)
            if values
        }
        return RunHistory(runs, waits, emulated_classes(live_workers(self._redis)))

    def _add_run(self, pipe: Pipeline, key: WorkloadKey, run: RunSample, ended_at: float) -> None:
        # Versions that do not know the field ignore entries that have it.
        member = key.model_dump_json(exclude=None if key.emulated else {"emulated"})
        self._push(pipe, f"{_INDEX}:{member}", run.model_dump_json())
        pipe.zadd(_INDEX, {member: ended_at})
        pipe.zremrangebyscore(_INDEX, "-inf", ended_at - self._ttl.total_seconds())
        pipe.expire(_INDEX, self._ttl)

    def _push(self, pipe: Pipeline, redis_key: str, value: str) -> None:
        pipe.lpush(redis_key, value)
        pipe.ltrim(redis_key, 0, _MAX_RUNS - 1)
        pipe.expire(redis_key, self._ttl)


def workload_key(
    training: PipelineConfig, stage: str, memory_class: MemoryClass | None
) -> WorkloadKey:
    """Return the workload of a stage of a job on a GPU of this class, or on none."""
    if memory_class is None:
        return WorkloadKey(stage=stage, type=training.type)
    samples = training.train_batch_size * training.gradient_accumulation_steps
    return WorkloadKey(
        stage=stage,
        type=training.type,
        memory_class=memory_class,
        size=training.loader.target_size(),
        samples=samples if stage == "train" else 1,
    )


def queue_wait_s(job: JobRecord, stage: str, started: StageRecord) -> float | None:
    """Return the seconds that a stage waited in its queue; None if a start is not its first."""
    index = STAGES.index(stage)
    if index == 0:
        queued_at, attempt = job.created_at.timestamp(), 0
    else:
        before = job.stages.get(STAGES[index - 1])
        if before is None or before.seconds is None:
            return None
        # Includes the pause of a job that was paused here: rare, and a median ignores it.
        queued_at, attempt = before.started_at + before.seconds, before.attempt
    return max(0.0, started.started_at - queued_at) if started.attempt == attempt + 1 else None


def p90(values: Sequence[float]) -> float:
    """Return the 90th percentile: the smallest value that 90 % of the values do not exceed."""
    return sorted(values)[math.ceil(0.9 * len(values)) - 1]


def _statistics(key: WorkloadKey, source: WorkloadKey, runs: Sequence[RunSample]) -> RunStatistics:
    unit_s = [run.unit_s * key.relative_cost(source) for run in runs]
    overhead_s = statistics.median(run.overhead_s for run in runs)
    return RunStatistics(statistics.median(unit_s), p90(unit_s), overhead_s, len(runs), source)


def _sample(key: WorkloadKey, seconds: float, work_done: WorkDone) -> RunSample | None:
    """Return the measured time of a run; None if the run measured nothing."""
    unit_s = work_done.unit_s
    if work_done.is_toy and not key.emulated:
        return None
    if work_done.units and unit_s is None and key.memory_class is None:
        # A stage without a GPU loads no model first: all its time belongs to its units.
        unit_s = seconds / work_done.units
    if not work_done.units or unit_s is None:
        return None
    return RunSample(unit_s=unit_s, overhead_s=max(0.0, seconds - work_done.units * unit_s))
