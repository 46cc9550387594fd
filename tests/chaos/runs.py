"""Runs: a job, faults while it runs, and what must be true after them."""

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
    """What must be true after every run is not."""


@dataclass
class Outcome:
    """What came of a run.

    Attributes:
        faults: Their names, each with the moment it struck at.
        seconds: From submit to the end.
        resumed_after_s: From the first fault to the next step of the training, where it struck
            while the job trained and training began anew.
        steps_lost: Made before a fault and made again.
        starts: Of stages.
    """

    faults: list[str]
    seconds: float
    starts: int
    resumed_after_s: float | None = None
    steps_lost: int | None = None


@dataclass
class Jobs:
    """Descriptions of jobs, and the digests of their undisturbed results."""

    documents: list[dict[str, Any]]
    expected: list[str] = field(default_factory=list)


def new_jobs(cluster: Cluster, model: Path, images: Path, ranks: tuple[int, ...] = (2, 4)) -> Jobs:
    """Jobs that differ in their rank, run once in peace."""
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
        BrokenPromiseError: Something that must be true after it is not.
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
                break  # the job was over before
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
        told = "\n".join(f"{at} {event}" for at, event in cluster.client.state.events(job_id))
        raise BrokenPromiseError(f"{struck}: {error!r}\n{told}\n{cluster.log()}") from error
    return outcome


def _wait_for(cluster: Cluster, job_id: str, moment: str, step: int) -> bool:
    """Wait until the job is somewhere; False where it ended before."""
    deadline = time.monotonic() + _ENDS_WITHIN_S
    while time.monotonic() < deadline:
        with suppress(redis.RedisError):
            if cluster.client.state.get(job_id).status.ended:
                return False
            for _, event in cluster.client.state.events(job_id):
                if _is_there(event, moment, step):
                    return True
        time.sleep(0.02)
    raise AssertionError(f"the job never came to {moment}")


def _is_there(event: Event, moment: str, step: int) -> bool:
    if isinstance(event, StageStarted):
        return event.stage == moment
    is_step = isinstance(event, Progress) and event.unit == "steps" and event.done >= step
    return moment == "step" and is_step


def _ended(cluster: Cluster, job_id: str) -> JobRecord:
    def is_over() -> bool:
        record = cluster.record(job_id)
        return record is not None and record.status.ended

    wait_until(
        is_over,
        timeout_s=_ENDS_WITHIN_S,
        description=f"{job_id} is over",
        detail=lambda: str(cluster.record(job_id)),
    )
    return cluster.client.state.get(job_id)


def _starts(events: list[tuple[str, Event]]) -> int:
    return sum(isinstance(event, StageStarted) for _, event in events)


def _measure(outcome: Outcome, events: list[tuple[str, Event]], struck_at: float) -> None:
    """How long and how far the fault threw the training back."""
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
    assert len(ends) == 1, f"it ended {len(ends)} times"
    assert ends[0].status == record.status
    wanted = {"succeeded"} | ({"cancelled"} if any(f.cancels for f in faults) else set())
    assert record.status in wanted, f"it is {record.status}: {record.error}"
    manifests = [key for key in cluster.store.keys(f"outputs/{record.id}") if "manifest" in key]
    assert len(manifests) == (record.status == "succeeded"), manifests
    if record.result is not None:
        data = cluster.store.get(record.result["files"][0])
        assert hashlib.sha256(data).hexdigest() == record.result["sha256"] == expected
    if not any(fault.restarts for fault in faults):
        begun = Counter(e.stage for _, e in events if isinstance(e, StageStarted))
        assert set(begun.values()) <= {1}, f"stages began twice: {begun}"
    wait_until(
        lambda: _is_quiet(cluster),
        timeout_s=10 * TIMEOUT_S,
        description="no message, no orphan and nothing held is left",
        detail=lambda: f"{cluster.orphans()} {cluster.redis.hgetall('unacked')}",
    )
    mortal = [key for key in map(str, cluster.redis.scan_iter()) if _must_end(key)]
    for_ever = [key for key in mortal if cluster.redis.ttl(key) == -1]
    assert not for_ever, f"they have no life time: {for_ever}"
    # The disk is small.
    for prefix in (f"jobs/{record.id}", f"outputs/{record.id}"):
        cluster.store.delete(cluster.store.keys(prefix))


def _is_quiet(cluster: Cluster) -> bool:
    held = cluster.redis.hlen("unacked") + cluster.redis.zcard("unacked_index")
    waiting = sum(cluster.redis.llen(queue) for queue in ("cpu", "gpu.40gb"))
    return not held and not waiting and not cluster.orphans()


def _must_end(key: str) -> bool:
    return key.startswith(("training:", "celery-task-meta-"))
