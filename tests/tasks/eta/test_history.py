import logging
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis import Redis

from routing.classes import MemoryClass
from tasks.eta.history import (
    RateMeter,
    RunHistory,
    RunHistoryStore,
    RunSample,
    WorkDone,
    WorkloadKey,
    p90,
    workload_key,
)
from tasks.jobs.job import parse_job
from tasks.state.connection import connect
from tasks.state.record import JobRecord, JobStatus, StageRecord
from tasks.state.workers import WorkerHeartbeat, WorkerInfo

HOUR = timedelta(hours=1)
GB24, GB40, GB80 = MemoryClass.GB24, MemoryClass.GB40, MemoryClass.GB80
TRAIN = WorkloadKey(stage="train", type="FLUX_LORA", memory_class=GB40, size=(512, 512), samples=2)
CACHE = TRAIN.model_copy(update={"stage": "cache", "samples": 1})


def started(attempt: int, started_at: float, seconds: float | None, queue: str) -> StageRecord:
    return StageRecord(
        queue=queue, worker="w", attempt=attempt, started_at=started_at, seconds=seconds
    )


def record_with(document: dict[str, Any], **changes: Any) -> JobRecord:
    """A job submitted at second 1000."""
    job = parse_job(document)
    values: dict[str, Any] = {
        "id": "job",
        "status": JobStatus.RUNNING,
        "stage": "prepare",
        "pending_queue": None,
        "in_tenant_queue": False,
        "attempt": 1,
        "name": job.name,
        "tenant": job.tenant,
        "type": job.training.type,
        "job": job,
        "result_id": "result",
        "gpu_queue": "gpu.40gb",
        "reason": "",
        "estimate": job.training.estimate(),
        "checkpointed_blocks": job.training.checkpointed_blocks,
        "created_at": datetime.fromtimestamp(1000, UTC),
        "updated_at": datetime.fromtimestamp(1000, UTC),
        "due_at": None,
        "retries": 0,
        "save_on_cancel": False,
        "oom_escalated": False,
        "stages": {},
        "cache_queue": None,
        "artifacts": {},
    }
    return JobRecord(**{**values, **changes})


def test_runs_are_recorded_by_workload(redis_client: Redis, job_document: dict[str, Any]) -> None:
    on_80gb = RunHistoryStore(redis_client, HOUR, GB80)
    prepared, trained = started(1, 1002, 8, "cpu"), started(2, 1015, 300, "gpu.40gb")
    job = record_with(job_document, stages={"cache": started(1, 1000, 10, "gpu.40gb")})
    RunHistoryStore(redis_client, HOUR).record_run(job, "prepare", prepared, WorkDone(20))
    on_80gb.record_run(job, "train", trained, WorkDone(100, 2.5))
    history = on_80gb.read()
    prepare, train = (
        history.statistics_for(workload_key(job.job.training, stage, on))
        for stage, on in (("prepare", None), ("train", GB80))
    )
    assert prepare is not None
    assert train is not None
    assert (prepare.unit_s, prepare.overhead_s, prepare.runs) == (0.4, 0, 1)
    assert (train.unit_s, train.overhead_s, train.runs) == (2.5, 50, 1)
    assert train.source.memory_class == GB80
    assert history.waits == {"cpu": [2], "gpu.40gb": [5]}


def test_only_first_starts_record_a_wait(redis_client: Redis, job_document: dict[str, Any]) -> None:
    store = RunHistoryStore(redis_client, HOUR)
    again = started(2, 1002, 8, "cpu")
    store.record_run(record_with(job_document), "prepare", again, WorkDone(20))
    unfinished = record_with(job_document, stages={"train": started(3, 1000, None, "gpu.40gb")})
    store.record_run(unfinished, "publish", started(4, 5000, 1, "cpu"), WorkDone(1))
    assert store.read().waits == {}


@pytest.mark.parametrize("work_done", [WorkDone(), WorkDone(12)])
def test_a_gpu_stage_without_a_rate_is_not_recorded(
    redis_client: Redis, job_document: dict[str, Any], work_done: WorkDone
) -> None:
    store = RunHistoryStore(redis_client, HOUR, GB40)
    job = record_with(job_document)
    store.record_run(job, "cache", started(2, 1000, 60, "gpu.40gb"), work_done)
    assert store.read().runs == {}


def test_the_newest_runs_are_kept_for_the_ttl(
    redis_client: Redis, job_document: dict[str, Any]
) -> None:
    store = RunHistoryStore(redis_client, HOUR)
    job = record_with(job_document)
    for number in range(60):
        store.record_run(job, "prepare", started(1, 1000, number, "cpu"), WorkDone(1))
    history = store.read()
    [runs] = history.runs.values()
    assert [run.unit_s for run in runs] == list(range(59, 9, -1))
    assert len(history.waits["cpu"]) == 50
    keys = list(redis_client.scan_iter("*"))
    assert len(keys) == 3
    assert all(0 < redis_client.ttl(key) <= 3600 for key in keys)


def test_an_expired_workload_is_removed(redis_client: Redis, job_document: dict[str, Any]) -> None:
    store = RunHistoryStore(redis_client, HOUR)
    job = record_with(job_document)
    store.record_run(job, "prepare", started(1, 1000, 8, "cpu"), WorkDone(1))
    [member] = cast("list[str]", redis_client.zrange("training:run_history", 0, -1))
    redis_client.delete(f"training:run_history:{member}")
    assert store.read().runs == {}
    redis_client.zadd("training:run_history", {member: -3600.0})
    store.record_run(job, "publish", started(1, 1000, 8, "cpu"), WorkDone(1))
    assert redis_client.zcard("training:run_history") == 1


def test_an_unavailable_broker_is_logged(
    job_document: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    with connect("redis://127.0.0.1:9/0") as broker, caplog.at_level(logging.WARNING):
        job = record_with(job_document)
        RunHistoryStore(broker, HOUR).record_run(
            job, "prepare", started(1, 1000, 8, "cpu"), WorkDone(1)
        )
    assert "cannot record the run of prepare" in caplog.text


def known(*works: WorkloadKey, unit_s: float = 1.0) -> RunHistory:
    return RunHistory({work: [RunSample(unit_s=unit_s, overhead_s=10)] for work in works}, {})


@pytest.mark.parametrize(
    ("changes", "scale"),
    [
        ({}, 1),
        ({"samples": 4}, 0.5),
        ({"size": (1024, 512)}, 0.5),
        ({"size": (256, 512), "samples": 1}, 4),
        ({"memory_class": GB80}, 1),
    ],
)
def test_the_nearest_workload_is_scaled_and_named(changes: dict[str, Any], scale: float) -> None:
    other = TRAIN.model_copy(update=changes)
    statistics = known(other, unit_s=3).statistics_for(TRAIN)
    assert statistics is not None
    assert statistics.unit_s == statistics.unit_s_p90 == 3 * scale
    assert statistics.overhead_s == 10
    assert statistics.source == other


def test_nearest_is_by_samples_then_resolution_then_class() -> None:
    rungs = [
        TRAIN,
        TRAIN.model_copy(update={"samples": 4}),
        TRAIN.model_copy(update={"samples": 8}),
        TRAIN.model_copy(update={"size": (1024, 1024)}),
        TRAIN.model_copy(update={"memory_class": GB80}),
    ]
    while rungs:
        statistics = known(*reversed(rungs)).statistics_for(TRAIN)
        assert statistics is not None
        assert statistics.source == rungs.pop(0)


@pytest.mark.parametrize(
    "changes", [{"stage": "cache"}, {"type": "SDXL_LORA"}, {"memory_class": GB24}]
)
def test_other_stages_types_and_smaller_gpus_do_not_count(changes: dict[str, Any]) -> None:
    assert known(TRAIN.model_copy(update=changes)).statistics_for(TRAIN) is None


@pytest.mark.parametrize("changes", [{"size": (64, 64)}, {"size": (2048, 2048)}, {"samples": 32}])
def test_runs_of_far_more_or_less_work_are_not_scaled(changes: dict[str, Any]) -> None:
    assert known(TRAIN.model_copy(update=changes)).statistics_for(TRAIN) is None


def test_emulated_runs_count_for_emulated_gpus_only() -> None:
    emulated = TRAIN.model_copy(update={"emulated": True})
    assert known(emulated).statistics_for(TRAIN) is None
    found = replace(known(emulated), emulated=frozenset({GB40})).statistics_for(TRAIN)
    assert found is not None
    assert found.source == emulated
    assert replace(known(TRAIN), emulated=frozenset({GB40})).statistics_for(TRAIN) is None


def test_emulated_and_toy_runs_are_recorded_as_such(
    redis_client: Redis, job_document: dict[str, Any]
) -> None:
    job, trained = record_with(job_document), started(2, 1015, 300, "gpu.40gb")
    toy = WorkDone(100, 0.1, is_toy=True)
    RunHistoryStore(redis_client, HOUR, GB40).record_run(job, "train", trained, toy)
    assert RunHistoryStore(redis_client, HOUR).read().runs == {}
    RunHistoryStore(redis_client, HOUR, GB40, emulated=True).record_run(job, "train", trained, toy)
    [key] = RunHistoryStore(redis_client, HOUR).read().runs
    assert key.emulated


def test_a_class_is_emulated_without_a_real_gpu(redis_client: Redis) -> None:
    store = RunHistoryStore(redis_client, HOUR)
    for name, memory_class, gpu_mib in (("a", GB40, 0), ("b", GB24, 0), ("c", GB24, 24576)):
        info = WorkerInfo(queues=("cpu",), memory_class=memory_class, gpu_mib=gpu_mib)
        WorkerHeartbeat(redis_client, name, info, HOUR).renew()
    assert store.read().emulated == {GB40}


def compares(work: WorkloadKey, other: WorkloadKey) -> bool:
    is_as_large = (other.memory_class or 0) >= (work.memory_class or 0)
    return other.type == work.type and is_as_large and 0.25 <= work.relative_cost(other) <= 4


seconds = st.floats(0, 1e6)
works = st.builds(
    WorkloadKey,
    stage=st.just("train"),
    type=st.sampled_from(["FLUX_LORA", "SDXL_LORA"]),
    memory_class=st.sampled_from(MemoryClass),
    size=st.tuples(st.integers(8, 4096), st.integers(8, 4096)),
    samples=st.integers(1, 512),
)
runs = st.lists(st.builds(RunSample, unit_s=seconds, overhead_s=seconds), min_size=1, max_size=50)


@given(st.dictionaries(works, runs, max_size=8), works, st.integers(0, 10**6), st.integers(1, 99))
def test_more_steps_never_take_less_time(
    seen: dict[WorkloadKey, list[RunSample]], work: WorkloadKey, steps: int, more: int
) -> None:
    statistics = RunHistory(seen, {}).statistics_for(work)
    if statistics is None:
        assert not any(compares(work, other) for other in seen)
        return
    assert 0 <= statistics.seconds(steps) <= statistics.seconds(steps + more)
    assert statistics.unit_s <= statistics.unit_s_p90
    assert statistics.runs == len(seen[statistics.source])
    assert statistics.source.type == work.type
    if work in seen:
        assert statistics.source == work


@given(st.lists(seconds, min_size=1, max_size=60))
def test_p90_bounds_nine_in_ten_values(values: list[float]) -> None:
    bound = p90(values)
    assert bound in values
    assert sum(it <= bound for it in values) >= 0.9 * len(values)


def test_runs_of_another_version_are_ignored(
    redis_client: Redis, job_document: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    store = RunHistoryStore(redis_client, HOUR, GB40)
    store.record_run(
        record_with(job_document), "train", started(1, 1000, 60, "gpu.40gb"), WorkDone(20, 2)
    )
    known = store.read()
    [work] = known.runs
    other = work.model_dump_json().replace("{", '{"mood":"good",', 1)
    redis_client.zadd("training:run_history", {other: 1.0})
    redis_client.lpush(f"training:run_history:{other}", "{}")
    assert store.read() == known
    assert "mood" in caplog.text


def test_rate_counts_only_units_between_two_reports() -> None:
    times = iter([100.0, 104.0, 190.0, 192.0, 500.0, 501.0])
    meter = RateMeter(lambda: next(times))
    meter.update(11)
    assert meter.unit_s is None
    meter.update(13)  # 4 s for 2
    meter.pause()
    meter.update(14)
    meter.update(15)  # 2 s for 1
    meter.update(12)  # a restart
    meter.update(13)  # 1 s for 1
    assert meter.unit_s == 7 / 4
