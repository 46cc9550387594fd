"""Runs: a job, faults while it runs, and the promises that must hold after them."""

import hashlib
import random
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import redis

from tasks.events import CheckpointSaved, Event, JobEnded, Progress, StageStarted
from tasks.state.record import JobRecord
from tests.chaos.cluster import TIMEOUT_S, Cluster
from tests.chaos.faults import Fault, Strike
from tests.integration.conftest import short_job
from tests.waiting import wait_until

STEPS, CHECKPOINT_EVERY = 400, 20
_ENDS_WITHIN_S = 180.0
_MOMENTS = ("prepare", "cache", "train", "step", "publish")


class BrokenPromiseError(AssertionError):
    """A promise that must hold after every run is broken."""


@dataclass
class Outcome:
    """The result of a run.

    Attributes:
        faults: The names of the faults, each with its moment.
        seconds: From submit to the end.
        resumed_after_s: From the first fault to the next training step, if training restarted.
        steps_lost: Steps made before a fault and repeated after it.
        starts: The number of stage starts.
    """

    faults: list[str]
    seconds: float
    starts: int
    resumed_after_s: float | None = None
    steps_lost: int | None = None


@dataclass
class Jobs:
    """Job documents, and the digests of their undisturbed results."""

    documents: list[dict[str, Any]]
    expected: list[str] = field(default_factory=list)


def new_jobs(cluster: Cluster, model: Path, images: Path, ranks: tuple[int, ...] = (2, 4)) -> Jobs:
    """Return jobs that differ in rank, after a run of each without faults."""
    documents = []
    for rank in ranks:
        job = short_job(model, images)
        job["training"] |= {
            "max_train_steps": STEPS,
            "save_every_n_steps": CHECKPOINT_EVERY,
            "lora_rank_dim": rank,
        }
        documents.append(job)
    jobs = Jobs(documents)
    for document in documents:
        job_id = cluster.client.submit(document)
        record = _ended(cluster, job_id)
        assert record.result is not None, f"{record.error}\n{cluster.log()}"
        jobs.expected.append(record.result["sha256"])
    return jobs


def run(cluster: Cluster, jobs: Jobs, faults: list[Fault], chance: random.Random) -> Outcome:
    """Run a job and let the faults strike.

    Raises:
        BrokenPromiseError: A promise does not hold afterwards.
    """
    which = chance.randrange(len(jobs.documents))
    document = jobs.documents[which]
    began = time.time()
    job_id = cluster.client.submit({**document, "id": f"chaos-{chance.getrandbits(48):012x}"})
    struck: list[str] = []
    struck_at = 0.0
    try:
        for fault in faults:
            moment = "step" if fault.only_train else chance.choice(_MOMENTS)
            if not _wait_for(cluster, job_id, moment, chance.randrange(STEPS * 3 // 4)):
                break  # the job ended before
            struck.append(f"{fault.name} at {moment}")
            struck_at = struck_at or time.time()
            fault.strike(Strike(cluster, job_id, chance))
        cluster.heal()
        record = _ended(cluster, job_id)
        events = list(cluster.client.state.events(job_id))
        outcome = Outcome(struck, time.time() - began, _starts(events))
        _measure(outcome, events, struck_at)
        _check(cluster, record, events, jobs.expected[which], faults)
    except (AssertionError, redis.RedisError, psutil.Error) as error:
        cluster.heal()
        events_text = "\n".join(
            f"{position} {event}" for position, event in cluster.client.state.events(job_id)
        )
        raise BrokenPromiseError(f"{struck}: {error!r}\n{events_text}\n{cluster.log()}") from error
    return outcome


def _wait_for(cluster: Cluster, job_id: str, moment: str, step: int) -> bool:
    """Wait until the job reaches a moment; return False if it ended before."""
    deadline = time.monotonic() + _ENDS_WITHIN_S
    while time.monotonic() < deadline:
        with suppress(redis.RedisError):
            if cluster.client.state.get(job_id).status.ended:
                return False
            for _, event in cluster.client.state.events(job_id):
                if _is_there(event, moment, step):
                    return True
        time.sleep(0.02)
    raise AssertionError(f"the job never reached {moment}")


def _is_there(event: Event, moment: str, step: int) -> bool:
    if isinstance(event, StageStarted):
        return event.stage == moment
    is_step = isinstance(event, Progress) and event.unit == "steps" and event.done >= step
    return moment == "step" and is_step


def _ended(cluster: Cluster, job_id: str) -> JobRecord:
    def has_ended() -> bool:
        record = cluster.record(job_id)
        return record is not None and record.status.ended

    wait_until(
        has_ended,
        timeout_s=_ENDS_WITHIN_S,
        description=f"{job_id} has ended",
        detail=lambda: str(cluster.record(job_id)),
    )
    return cluster.client.state.get(job_id)


def _starts(events: list[tuple[str, Event]]) -> int:
    return sum(isinstance(event, StageStarted) for _, event in events)


def _measure(outcome: Outcome, events: list[tuple[str, Event]], struck_at: float) -> None:
    """Measure how long the training was interrupted, and how many steps were lost."""
    done = checkpoint = trains = 0
    for position, event in events:
        at = int(position.partition("-")[0]) / 1000
        if isinstance(event, StageStarted) and event.stage == "train":
            trains += 1
            if trains == 2:
                outcome.steps_lost = max(0, done - checkpoint)
        elif isinstance(event, CheckpointSaved):
            checkpoint = max(checkpoint, event.step)
        elif isinstance(event, Progress) and event.unit == "steps":
            done = max(done, event.done)
            if trains == 2 and outcome.resumed_after_s is None and at > struck_at:
                outcome.resumed_after_s = at - struck_at


def _check(
    cluster: Cluster,
    record: JobRecord,
    events: list[tuple[str, Event]],
    expected: str,
    faults: list[Fault],
) -> None:
    ends = [event for _, event in events if isinstance(event, JobEnded)]
    assert len(ends) == 1, f"the job ended {len(ends)} times"
    assert ends[0].status == record.status
    expected_statuses = {"succeeded"} | ({"cancelled"} if any(f.cancels for f in faults) else set())
    assert record.status in expected_statuses, f"the job is {record.status}: {record.error}"
    manifests = [key for key in cluster.store.keys(f"outputs/{record.id}") if "manifest" in key]
    assert len(manifests) == (record.status == "succeeded"), manifests
    if record.result is not None:
        data = cluster.store.get(record.result["files"][0])
        assert hashlib.sha256(data).hexdigest() == record.result["sha256"] == expected
    if not any(fault.restarts for fault in faults):
        starts = Counter(e.stage for _, e in events if isinstance(e, StageStarted))
        assert set(starts.values()) <= {1}, f"stages began twice: {starts}"
    wait_until(
        lambda: _is_quiet(cluster),
        timeout_s=10 * TIMEOUT_S,
        description="no message, no lease and no orphan is left",
        detail=lambda: f"{cluster.orphans()} {cluster.redis.hgetall('unacked')}",
    )
    expiring = [key for key in map(str, cluster.redis.scan_iter()) if _must_expire(key)]
    permanent = [key for key in expiring if cluster.redis.ttl(key) == -1]
    assert not permanent, f"keys that never expire: {permanent}"
    # The disk is small.
    for prefix in (f"jobs/{record.id}", f"outputs/{record.id}"):
        cluster.store.delete(cluster.store.keys(prefix))


def _is_quiet(cluster: Cluster) -> bool:
    held = cluster.redis.hlen("unacked") + cluster.redis.zcard("unacked_index")
    waiting = sum(cluster.redis.llen(queue) for queue in ("cpu", "gpu.40gb"))
    return not held and not waiting and not cluster.orphans()


def _must_expire(key: str) -> bool:
    return key.startswith(("training:", "celery-task-meta-"))
