from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from redis import Redis

from routing.classes import MemoryClass
from routing.queues import ALL_QUEUES
from tasks.eta.history import RunHistoryStore, WorkDone
from tasks.eta.positions import Positions
from tasks.events import Progress
from tasks.stages.submit import submit
from tasks.state.artifacts import JobArtifacts
from tasks.state.control import JobControl
from tasks.state.job_store import JobStore
from tasks.state.record import StageRecord
from tasks.state.stage_message import stage_message
from tasks.state.tenants.quotas import Quotas
from tasks.state.tenants.tenant_queues import TenantQueues
from tasks.state.workers import WorkerHeartbeat, WorkerInfo
from tests.tasks.eta.test_history import record_with, started

HOUR = timedelta(hours=1)
GPU = "gpu.40gb"


@pytest.fixture
def jobs(redis_client: Redis) -> JobStore:
    TenantQueues(redis_client, HOUR).publish_fleet(
        [WorkerInfo(queues=ALL_QUEUES, memory_class=None)], {}, HOUR
    )
    return JobStore(redis_client, HOUR)


@pytest.fixture
def positions(redis_client: Redis, jobs: JobStore) -> Callable[[], Positions]:
    """Return new positions, which have read nothing yet."""
    queues, quotas = TenantQueues(redis_client, HOUR), Quotas(redis_client)
    history = RunHistoryStore(redis_client, HOUR)
    return lambda: Positions(redis_client, jobs, queues, quotas, history)


@pytest.fixture
def history(redis_client: Redis, job_document: dict[str, Any]) -> None:
    """A step takes 2 s after 20 s, and an entry 1 s."""
    store = RunHistoryStore(redis_client, HOUR, MemoryClass.GB40)
    job_document["training"] |= {"max_train_steps": 100, "max_train_epochs": None}
    job = record_with(job_document, stages={"cache": started(2, 1000, 10, GPU)})
    store.record_run(job, "train", started(3, 1100, 120, GPU), WorkDone(50, 2.0))
    store.record_run(job, "cache", started(2, 1000, 10, GPU), WorkDone(10, 1.0))


@pytest.fixture
def worker(redis_client: Redis) -> None:
    info = WorkerInfo(queues=(GPU,), memory_class=MemoryClass.GB40, gpu_mib=40960)
    WorkerHeartbeat(redis_client, "gpu", info, HOUR).renew()


@pytest.fixture
def prepared(jobs: JobStore, job_document: dict[str, Any]) -> Callable[..., str]:
    """Submit a job and finish its first stage; then it waits for its GPU or is sent there."""

    def one(tenant: str = "a") -> str:
        job_id = submit({**job_document, "tenant": tenant}, jobs, "result").job_id
        token = jobs.begin(job_id, "prepare", worker="cpu", queue="cpu", tag="t").token
        done = StageRecord(queue="cpu", worker="cpu", attempt=1, started_at=0, seconds=1)
        left = JobArtifacts(dataset="d", images=4)
        following = stage_message(job_id, "result", "cache", GPU, label="job")
        jobs.finish_stage(
            job_id, token, "prepare", done, left, None, following=following, is_shared=True
        )
        return job_id

    return one


@pytest.mark.usefixtures("history", "worker")
def test_waiting_jobs_know_their_place_and_start(
    jobs: JobStore,
    prepared: Callable[..., str],
    positions: Callable[[], Positions],
    redis_client: Redis,
) -> None:
    running, first, second, third, sent = (prepared(name) for name in "aaaab")
    token = jobs.begin(running, "cache", worker="gpu", queue=GPU, tag="t").token
    done = StageRecord(queue=GPU, worker="gpu", attempt=2, started_at=0, seconds=1)
    jobs.finish_stage(running, token, "cache", done, JobArtifacts(cache_index="i"), None)
    token = jobs.begin(running, "train", worker="gpu", queue=GPU, tag="u").token
    step = Progress(stage="train", done=40, total=100, unit="steps", per_second=0.5)
    jobs.write(running, token, [step])
    redis_client.delete(GPU)  # the worker has taken its message
    assert TenantQueues(redis_client, HOUR).dispatch() == [sent]
    of = positions()
    assert of.of(jobs.get(running)) is None
    found = [of.of(jobs.get(job_id)) for job_id in (sent, first, second, third)]
    assert [it and it.place for it in found] == [None, 1, 2, 3]
    assert [it and it.jobs_before for it in found] == [0, 1, 2, 3]
    # 60 steps at 0.5 a second; then each job takes 220 s of training and a few of caching.
    left = [
        (it.starts_at - datetime.now(UTC)).total_seconds() for it in found if it and it.starts_at
    ]
    assert left[0] == pytest.approx(120, abs=5)
    each = left[1] - left[0]
    assert 220 < each < 240
    assert left[3] == pytest.approx(left[0] + 3 * each, abs=5)


@pytest.mark.usefixtures("worker")
def test_without_history_the_start_is_unknown_and_says_why(
    jobs: JobStore, prepared: Callable[..., str], positions: Callable[[], Positions]
) -> None:
    prepared()
    waiting = prepared()
    found = positions().of(jobs.get(waiting))
    assert found is not None
    assert (found.place, found.jobs_before, found.starts_at) == (1, 1, None)
    assert found.unknown == "cache: no finished run to estimate from"


def test_without_a_worker_the_start_is_unknown(
    jobs: JobStore, prepared: Callable[..., str], positions: Callable[[], Positions]
) -> None:
    prepared()
    found = positions().of(jobs.get(prepared()))
    assert found is not None
    assert found.unknown == f"no live worker takes jobs from {GPU}"


@pytest.mark.usefixtures("history", "worker")
def test_a_job_that_a_quota_holds_names_it(
    jobs: JobStore,
    prepared: Callable[..., str],
    positions: Callable[[], Positions],
    redis_client: Redis,
) -> None:
    prepared()
    held = prepared()
    Quotas(redis_client).change("a", {"gpu_hours": 1})
    used = f"training:usage:{datetime.now(UTC):%Y-%m}:a"
    redis_client.hset(used, items=["gpu_ms", 3_600_000, "gpu_ms:40gb", 3_600_000])
    found = positions().of(jobs.get(held))
    assert found is not None
    assert found.quota is not None
    assert found.quota.startswith("a has used its 1 GPU hours of ")
    assert found.starts_at is None


@pytest.mark.usefixtures("history", "worker")
def test_a_job_moved_to_the_front_is_next(
    jobs: JobStore,
    prepared: Callable[..., str],
    positions: Callable[[], Positions],
    redis_client: Redis,
) -> None:
    prepared()
    first, last = prepared(), prepared()
    control = JobControl(redis_client, HOUR)
    assert control.prioritize(last, None)
    assert [it and it.place for it in map(positions().of, map(jobs.get, (last, first)))] == [1, 2]
    assert jobs.get(last).moved_to_front_at is not None
    assert control.prioritize(first, 9)
    assert control.prioritize(last, 3)
    assert [it and it.place for it in map(positions().of, map(jobs.get, (last, first)))] == [2, 1]
    assert (jobs.get(last).priority, jobs.get(last).moved_to_front_at) == (3, None)
