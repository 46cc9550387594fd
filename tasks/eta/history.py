"""How long stages took and jobs waited, kept in Redis as they finish, and what that says of others.

For each kind of work the newest figures are kept as they came, for the life time of a job after the
last one. What is told of them is their median and the value that 90 % of them do not exceed. Where
the very same work was never done, the nearest stands in for it, in this order:

1. the same type, memory class, resolution and samples a step;
2. another number of samples a step, scaled by it;
3. another resolution, scaled by its pixels too;
4. a larger class, whose GPUs do the smaller one's jobs as well: scaled as above, but not for the
   class.

A figure says what it was learned from. Where there is nothing of that type on such a class, there
is no figure. Options that move the speed by less than that, such as gradient checkpointing, are not
told apart. Knows neither Celery nor torch, nor what will be made of the figures.
"""

import logging
import math
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, cast

from pydantic import ValidationError
from redis import Redis, RedisError
from redis.client import Pipeline

from routing.classes import MemoryClass
from routing.queues import ALL_QUEUES
from tasks.contract import STAGES
from tasks.eta.rate_meter import WorkDone
from tasks.jobs.pipeline import PipelineConfig
from tasks.state.record import JobRecord, StageRecord
from tasks.strict_model import StrictModel

logger = logging.getLogger(__name__)

UNITS = {"prepare": "image", "cache": "entry", "train": "step", "publish": "job"}
"""What the work of each stage is counted in."""

_INDEX = "training:times"
_WAITS = "training:waits:"
# Enough for a 90 % value; what is older was perhaps done by other GPUs or versions.
_KEPT = 50


class WorkloadKey(StrictModel):
    """A kind of work: what of a stage decides how long a unit of it takes."""

    stage: str
    type: str
    """The training type."""
    memory_class: MemoryClass | None = None
    """That of the GPU that does it; null for the stages that need none."""
    size: tuple[int, int] | None = None
    """Width and height that training aims at; null where it does not matter, as below."""
    samples: int = 1
    """Samples of one step."""

    def over(self, other: "WorkloadKey") -> float:
        """How much longer a unit of this takes than one of the other."""
        return self._pixels / other._pixels * self.samples / other.samples

    def distance(self, other: "WorkloadKey") -> tuple[int, float, float]:
        """How far the other's figures are from this one's: less is better."""
        return (
            (other.memory_class or 0) - (self.memory_class or 0),
            abs(math.log(self._pixels / other._pixels)),
            abs(math.log(self.samples / other.samples)),
        )

    def document(self) -> dict[str, Any]:
        """The work for programs."""
        return {
            "stage": self.stage,
            "type": self.type,
            "memory_class": None if self.memory_class is None else str(self.memory_class),
            "resolution": self.resolution,
            "samples": self.samples,
        }

    @property
    def resolution(self) -> str | None:
        """The size as people write it."""
        return None if self.size is None else "x".join(map(str, self.size))

    @property
    def _pixels(self) -> int:
        return math.prod(self.size or (1,))


def work_of(training: PipelineConfig, stage: str, memory_class: MemoryClass | None) -> WorkloadKey:
    """What a stage of a job is, done on a GPU of this class, or on none."""
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


class RunSample(StrictModel):
    """What one start of a stage took."""

    unit_s: float
    """Seconds for each unit."""
    rest_s: float
    """Seconds for all else, such as loading the base model."""


@dataclass(frozen=True)
class RunStatistics:
    """What a kind of work takes.

    Attributes:
        unit_s: Seconds a unit: the median.
        unit_s_p90: What 90 % of the runs do not exceed.
        rest_s: Seconds for all else, the median.
        runs: How many runs it rests on.
        learned_from: What they did; where that is other work, the seconds are scaled.
    """

    unit_s: float
    unit_s_p90: float
    rest_s: float
    runs: int
    learned_from: WorkloadKey

    def seconds(self, units: int) -> float:
        """What so many units take."""
        return self.rest_s + units * self.unit_s


@dataclass(frozen=True)
class RunHistory:
    """All that is known.

    Attributes:
        runs: What was seen of each kind of work.
        waits: By queue, the seconds from queued to begun.
    """

    runs: Mapping[WorkloadKey, Sequence[RunSample]]
    waits: Mapping[str, Sequence[float]]

    def figures(self) -> list[RunStatistics]:
        """What each kind of work takes that was ever done."""
        return [_figure(work, work, runs) for work, runs in self.runs.items()]

    def figure(self, work: WorkloadKey) -> RunStatistics | None:
        """What this work takes; None where there is no finished run to learn from."""
        near = [
            it
            for it in self.runs
            if (it.stage, it.type) == (work.stage, work.type)
            and (it.memory_class or 0) >= (work.memory_class or 0)
        ]
        if not near:
            return None
        nearest = min(near, key=work.distance)
        return _figure(work, nearest, self.runs[nearest])


class RunHistoryStore:
    """Keeps what stages took.

    Args:
        client: A connection to Redis that decodes responses.
        ttl: How long figures are kept after the last of their kind.
        memory_class: That of this worker's own GPU.
    """

    def __init__(
        self, client: Redis, ttl: timedelta, memory_class: MemoryClass | None = None
    ) -> None:
        self._redis, self._ttl, self._memory_class = client, ttl, memory_class

    def record(self, job: JobRecord, stage: str, done: StageRecord, made: WorkDone) -> None:
        """Learn from a stage that is done; a broker that is away only costs the figure."""
        work = work_of(job.job.training, stage, self._memory_class)
        run, waited = _run(work, done.seconds or 0.0, made), waited_s(job, stage, done)
        try:
            with self._redis.pipeline(transaction=False) as pipe:
                if run is not None:
                    self._keep_run(pipe, work, run)
                if waited is not None:
                    self._push(pipe, f"{_WAITS}{done.queue}", f"{waited:.3f}")
                pipe.execute()
        except RedisError as error:
            extra = {"job": job.id, "stage": stage}
            logger.warning("cannot keep how long %s took: %s", stage, error, extra=extra)

    def learned(self) -> RunHistory:
        """All that is known, as of now."""
        members = sorted(cast("list[str]", self._redis.zrange(_INDEX, 0, -1)))
        with self._redis.pipeline(transaction=False) as pipe:
            for key in (f"{_INDEX}:{member}" for member in members):
                pipe.lrange(key, 0, -1)
            for queue in ALL_QUEUES:
                pipe.lrange(f"{_WAITS}{queue}", 0, -1)
            lists = cast("list[list[str]]", pipe.execute())
        works, waits = lists[: len(members)], lists[len(members) :]
        runs = {}
        for member, found in zip(members, works, strict=True):
            try:
                work, its = _read(member, found)
            except ValidationError:
                logger.warning("what another version has learned is left out: %s", member)
                continue
            if its:
                runs[work] = its
        return RunHistory(
            runs=runs,
            waits={
                queue: [float(it) for it in found]
                for queue, found in zip(ALL_QUEUES, waits, strict=True)
                if found
            },
        )

    def _keep_run(self, pipe: Pipeline, work: WorkloadKey, run: RunSample) -> None:
        member, now = work.model_dump_json(), time.time()
        self._push(pipe, f"{_INDEX}:{member}", run.model_dump_json())
        pipe.zadd(_INDEX, {member: now})
        pipe.zremrangebyscore(_INDEX, "-inf", now - self._ttl.total_seconds())
        pipe.expire(_INDEX, self._ttl)

    def _push(self, pipe: Pipeline, key: str, value: str) -> None:
        pipe.lpush(key, value)
        pipe.ltrim(key, 0, _KEPT - 1)
        pipe.expire(key, self._ttl)


def _read(member: str, runs: Sequence[str]) -> tuple[WorkloadKey, list[RunSample]]:
    work = WorkloadKey.model_validate_json(member)
    return work, [RunSample.model_validate_json(run) for run in runs]


def p90(values: Sequence[float]) -> float:
    """The smallest of the values that 90 % of them do not exceed."""
    return sorted(values)[math.ceil(0.9 * len(values)) - 1]


def waited_s(job: JobRecord, stage: str, done: StageRecord) -> float | None:
    """From queued to begun; None where that is not known: in any start but the first."""
    number = STAGES.index(stage)
    if number == 0:
        queued_at, attempt = job.created_at.timestamp(), 0
    else:
        before = job.stages.get(STAGES[number - 1])
        if before is None or before.seconds is None:
            return None
        # A job that somebody paused here counts, too: one of many, which no median minds.
        queued_at, attempt = before.started_at + before.seconds, before.attempt
    return max(0.0, done.started_at - queued_at) if done.attempt == attempt + 1 else None


def _figure(work: WorkloadKey, nearest: WorkloadKey, runs: Sequence[RunSample]) -> RunStatistics:
    each = [run.unit_s * work.over(nearest) for run in runs]
    rest_s = statistics.median(run.rest_s for run in runs)
    return RunStatistics(statistics.median(each), p90(each), rest_s, len(runs), nearest)


def _run(work: WorkloadKey, seconds: float, made: WorkDone) -> RunSample | None:
    """What a start took; None where there is nothing to learn."""
    unit_s = made.unit_s
    if made.units and unit_s is None and work.memory_class is None:
        # Nothing is loaded first where no GPU is needed.
        unit_s = seconds / made.units
    if not made.units or unit_s is None:
        return None
    return RunSample(unit_s=unit_s, rest_s=max(0.0, seconds - made.units * unit_s))
