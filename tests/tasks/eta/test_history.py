import logging
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis import Redis

from routing.classes import MemoryClass
from tasks.eta.history import RunHistory, RunHistoryStore, RunSample, WorkloadKey, p90, work_of
from tasks.eta.rate_meter import WorkDone
from tasks.jobs.job import parse_job
from tasks.state.job_store import connect
from tasks.state.record import JobRecord, JobStatus, StageRecord

HOUR = timedelta(hours=1)
GB24, GB40, GB80 = MemoryClass.GB24, MemoryClass.GB40, MemoryClass.GB80
TRAIN = WorkloadKey(stage="train", type="FLUX_LORA", memory_class=GB40, size=(512, 512), samples=2)
CACHE = TRAIN.model_copy(update={"stage": "cache", "samples": 1})


def begun(attempt: int, started_at: float, seconds: float | None, queue: str) -> StageRecord:
    return StageRecord(
        queue=queue, worker="w", attempt=attempt, started_at=started_at, seconds=seconds
    )


def record_with(document: dict[str, Any], **changes: Any) -> JobRecord:
    """A job that was submitted at second 1000."""
    job = parse_job(document)
    values: dict[str, Any] = {
        "id": "job",
        "status": JobStatus.RUNNING,
        "stage": "prepare",
        "pending_queue": None,
        "in_tenant_queue": False,
        "attempt": 1,
        "name": job.name,
        "job": job,
        "result_id": "result",
        "gpu_queue": "gpu.40gb",
        "reason": "",
        "estimate": job.training.estimate(),
        "created_at": datetime.fromtimestamp(1000, UTC),
        "updated_at": datetime.fromtimestamp(1000, UTC),
        "due_at": None,
        "retries": 0,
        "save_on_cancel": False,
        "oom_escalated": False,
        "stages": {},
        "refs": {},
    }
    return JobRecord(**{**values, **changes})


def test_what_stages_took_is_told_by_the_work_they_did(
    redis_client: Redis, job_document: dict[str, Any]
) -> None:
    on_80gb = RunHistoryStore(redis_client, HOUR, GB80)
    prepared, trained = begun(1, 1002, 8, "cpu"), begun(2, 1015, 300, "gpu.40gb")
    job = record_with(job_document, stages={"cache": begun(1, 1000, 10, "gpu.40gb")})
    RunHistoryStore(redis_client, HOUR).record(job, "prepare", prepared, WorkDone(20))
    on_80gb.record(job, "train", trained, WorkDone(100, 2.5))
    learned = on_80gb.learned()
    prepare, train = (
        learned.figure(work_of(job.job.training, stage, on))
        for stage, on in (("prepare", None), ("train", GB80))
    )
    assert prepare is not None
    assert train is not None
    assert (prepare.unit_s, prepare.rest_s, prepare.runs) == (0.4, 0, 1)
    assert (train.unit_s, train.rest_s, train.runs) == (2.5, 50, 1)
    assert train.learned_from.memory_class == GB80
    assert learned.waits == {"cpu": [2], "gpu.40gb": [5]}


def test_only_a_first_start_tells_how_long_jobs_wait(
    redis_client: Redis, job_document: dict[str, Any]
) -> None:
    durations = RunHistoryStore(redis_client, HOUR)
    again = begun(2, 1002, 8, "cpu")
    durations.record(record_with(job_document), "prepare", again, WorkDone(20))
    unfinished = record_with(job_document, stages={"train": begun(3, 1000, None, "gpu.40gb")})
    durations.record(unfinished, "publish", begun(4, 5000, 1, "cpu"), WorkDone(1))
    assert durations.learned().waits == {}


@pytest.mark.parametrize("made", [WorkDone(), WorkDone(12)])
def test_a_gpu_stage_that_measured_no_unit_teaches_nothing(
    redis_client: Redis, job_document: dict[str, Any], made: WorkDone
) -> None:
    durations = RunHistoryStore(redis_client, HOUR, GB40)
    job = record_with(job_document)
    durations.record(job, "cache", begun(2, 1000, 60, "gpu.40gb"), made)
    assert durations.learned().runs == {}


def test_the_newest_figures_are_kept_for_the_life_time_of_a_job(
    redis_client: Redis, job_document: dict[str, Any]
) -> None:
    durations = RunHistoryStore(redis_client, HOUR)
    job = record_with(job_document)
    for number in range(60):
        durations.record(job, "prepare", begun(1, 1000, number, "cpu"), WorkDone(1))
    learned = durations.learned()
    [runs] = learned.runs.values()
    assert [run.unit_s for run in runs] == list(range(59, 9, -1))
    assert len(learned.waits["cpu"]) == 50
    keys = list(redis_client.scan_iter("*"))
    assert len(keys) == 3
    assert all(0 < redis_client.ttl(key) <= 3600 for key in keys)


def test_a_kind_of_work_that_nobody_does_any_more_is_forgotten(
    redis_client: Redis, job_document: dict[str, Any]
) -> None:
    durations = RunHistoryStore(redis_client, HOUR)
    job = record_with(job_document)
    durations.record(job, "prepare", begun(1, 1000, 8, "cpu"), WorkDone(1))
    [member] = cast("list[str]", redis_client.zrange("training:times", 0, -1))
    redis_client.delete(f"training:times:{member}")
    assert durations.learned().runs == {}
    redis_client.zadd("training:times", {member: 1.0})
    durations.record(job, "publish", begun(1, 1000, 8, "cpu"), WorkDone(1))
    assert redis_client.zcard("training:times") == 1


def test_a_broker_that_is_away_costs_the_figure_and_is_logged(
    job_document: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    with connect("redis://127.0.0.1:9/0") as away, caplog.at_level(logging.WARNING):
        job = record_with(job_document)
        RunHistoryStore(away, HOUR).record(job, "prepare", begun(1, 1000, 8, "cpu"), WorkDone(1))
    assert "cannot keep how long prepare took" in caplog.text


def known(*works: WorkloadKey, unit_s: float = 1.0) -> RunHistory:
    return RunHistory({work: [RunSample(unit_s=unit_s, rest_s=10)] for work in works}, {})


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
def test_the_nearest_work_stands_in_and_says_so(changes: dict[str, Any], scale: float) -> None:
    other = TRAIN.model_copy(update=changes)
    figure = known(other, unit_s=3).figure(TRAIN)
    assert figure is not None
    assert figure.unit_s == figure.unit_s_p90 == 3 * scale
    assert figure.rest_s == 10
    assert figure.learned_from == other


def test_the_ladder_goes_from_samples_to_resolution_to_larger_classes() -> None:
    rungs = [
        TRAIN,
        TRAIN.model_copy(update={"samples": 4}),
        TRAIN.model_copy(update={"samples": 16}),
        TRAIN.model_copy(update={"size": (1024, 1024)}),
        TRAIN.model_copy(update={"memory_class": GB80}),
    ]
    while rungs:
        figure = known(*reversed(rungs)).figure(TRAIN)
        assert figure is not None
        assert figure.learned_from == rungs.pop(0)


@pytest.mark.parametrize(
    "changes", [{"stage": "cache"}, {"type": "SDXL_LORA"}, {"memory_class": GB24}]
)
def test_other_stages_types_and_smaller_gpus_say_nothing(changes: dict[str, Any]) -> None:
    assert known(TRAIN.model_copy(update=changes)).figure(TRAIN) is None


def on(work: WorkloadKey) -> int:
    return work.memory_class or 0


seconds = st.floats(0, 1e6)
works = st.builds(
    WorkloadKey,
    stage=st.just("train"),
    type=st.sampled_from(["FLUX_LORA", "SDXL_LORA"]),
    memory_class=st.sampled_from(MemoryClass),
    size=st.tuples(st.integers(8, 4096), st.integers(8, 4096)),
    samples=st.integers(1, 512),
)
runs = st.lists(st.builds(RunSample, unit_s=seconds, rest_s=seconds), min_size=1, max_size=50)


@given(st.dictionaries(works, runs, max_size=8), works, st.integers(0, 10**6), st.integers(1, 99))
def test_more_steps_never_take_less_and_what_is_unknown_stays_so(
    seen: dict[WorkloadKey, list[RunSample]], work: WorkloadKey, steps: int, more: int
) -> None:
    figure = RunHistory(seen, {}).figure(work)
    if figure is None:
        assert all(it.type != work.type or on(it) < on(work) for it in seen)
        return
    assert 0 <= figure.seconds(steps) <= figure.seconds(steps + more)
    assert figure.unit_s <= figure.unit_s_p90
    assert figure.runs == len(seen[figure.learned_from])
    assert figure.learned_from.type == work.type
    if work in seen:
        assert figure.learned_from == work


@given(st.lists(seconds, min_size=1, max_size=60))
def test_nine_in_ten_values_do_not_exceed_p90(values: list[float]) -> None:
    bound = p90(values)
    assert bound in values
    assert sum(it <= bound for it in values) >= 0.9 * len(values)


def test_what_another_version_has_learned_is_left_out(
    redis_client: Redis, job_document: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    durations = RunHistoryStore(redis_client, HOUR, GB40)
    durations.record(
        record_with(job_document), "train", begun(1, 1000, 60, "gpu.40gb"), WorkDone(20, 2)
    )
    known = durations.learned()
    [work] = known.runs
    other = work.model_dump_json().replace("{", '{"mood":"good",', 1)
    redis_client.zadd("training:times", {other: 1.0})
    redis_client.lpush(f"training:times:{other}", "{}")
    assert durations.learned() == known
    assert "mood" in caplog.text
