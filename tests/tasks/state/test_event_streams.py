"""A job's two streams: every event but progress, and a sample of each stage's progress."""

from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import pytest
from redis import Redis

from tasks.contract import events_key, position_order, progress_key
from tasks.errors import JobError
from tasks.events import Artifact, CheckpointSaved, Event, JobEnded, Note, Progress
from tasks.stages.submit import submit
from tasks.state.fencing_token import FencingToken
from tasks.state.job_store import JobStore

STEPS = 10_000
WEIGHTS = Artifact(
    name="lamp.safetensors", key="jobs/one/lamp.safetensors", sha256="0" * 64, size=1
)


@pytest.fixture
def job_id(state: JobStore, job_document: dict[str, Any]) -> str:
    return submit(job_document, state, "result").job_id


@pytest.fixture
def token(state: JobStore, job_id: str) -> FencingToken:
    return state.begin(job_id, "prepare", worker="w", queue="cpu", tag="t").token


def step(number: int) -> Progress:
    return Progress(
        stage="train",
        done=number,
        total=STEPS,
        unit="steps",
        per_second=9.87,
        loss=1 / number,
        learning_rate=1e-4,
    )


def saved(number: int) -> CheckpointSaved:
    return CheckpointSaved(step=number, state_key=f"jobs/one/{number}", weights=WEIGHTS)


def write(state: JobStore, job_id: str, token: FencingToken, events: list[Event]) -> None:
    for start in range(0, len(events), 20):
        state.write(job_id, token, events[start : start + 20])


def steps_in(events: list[Event]) -> list[int]:
    return [it.done for it in events if isinstance(it, Progress) and it.unit == "steps"]


def others_in(events: list[Event]) -> list[Event]:
    return [it for it in events if not isinstance(it, Progress)]


def test_a_long_run_keeps_every_event_and_its_whole_curve(
    state: JobStore, redis_client: Redis, job_id: str, token: FencingToken
) -> None:
    before = [event for _, event in state.events(job_id)]
    written: list[Event] = [
        Progress(stage="prepare", done=done, total=500, unit="files") for done in range(1, 501)
    ]
    for number in range(1, STEPS + 1):
        written.append(step(number))
        if number % 100 == 0:
            written.append(saved(number))
    write(state, job_id, token, written)
    found = [event for _, event in state.events(job_id)]
    assert others_in(found) == before + others_in(written)
    curve = steps_in(found)
    assert (curve[0], curve[-1]) == (1, STEPS)
    assert 500 <= len(curve) <= 1001
    assert max(after - before for before, after in pairwise(curve)) <= STEPS / 500
    # The sample of a short stage is not thinned by a long one.
    assert sum(isinstance(it, Progress) and it.stage == "prepare" for it in found) == 500
    keys = events_key(job_id), progress_key(job_id)
    used = sum(redis_client.memory_usage(key, samples=0) or 0 for key in keys)
    assert used < 400 * 1024, used


@pytest.mark.parametrize("count", [1, 2, 1000, 1001, 1002, 2001, 2002, 2003, 4005])
def test_a_sample_is_even_and_ends_with_the_newest(
    state: JobStore, job_id: str, token: FencingToken, count: int
) -> None:
    write(state, job_id, token, [step(number) for number in range(1, count + 1)])
    *curve, newest = steps_in([event for _, event in state.events(job_id)])
    assert newest == count
    stride = curve[1] - curve[0] if len(curve) > 1 else 1
    assert curve == list(range(1, count, stride))
    assert len(curve) <= 1000


def test_a_reader_resumes_both_streams_after_any_position(
    state: JobStore, job_id: str, token: FencingToken
) -> None:
    write(state, job_id, token, [step(1), saved(1), step(2), step(3), saved(3), saved(4), step(5)])
    whole = list(state.events(job_id))
    assert [event.kind for _, event in whole[2:]] == (
        ["progress", "checkpoint", "progress", "progress", "checkpoint", "checkpoint", "progress"]
    )
    for number, (position, _) in enumerate(whole):
        assert list(state.events(job_id, after=position)) == whole[number + 1 :]


def test_a_live_reader_gets_every_event_once_and_in_order(
    state: JobStore, job_id: str, token: FencingToken
) -> None:
    def follow() -> list[tuple[str, Event]]:
        found: list[tuple[str, Event]] = []
        while not found or not isinstance(found[-1][1], JobEnded):
            after = found[-1][0] if found else "0"
            found += state.events(job_id, after=after, block_ms=1000)
        return found

    notes: list[Event] = [Note(level="info", message=str(number)) for number in range(300)]
    with ThreadPoolExecutor() as pool:
        readers = [pool.submit(follow) for _ in range(3)]
        for number, note in enumerate(notes, 1):
            state.write(job_id, token, [step(10 * number), note, step(10 * number + 1)])
        state.fail(job_id, token, JobError("broken"))
        for reader in readers:
            found = reader.result(60)
            order = [position_order(position) for position, _ in found]
            assert order == sorted(set(order))
            assert [event for _, event in found if event in notes] == notes
            assert steps_in([event for _, event in found])[-1] == 3001


def test_events_beyond_the_bound_are_dropped_visibly(
    state: JobStore, job_id: str, token: FencingToken
) -> None:
    notes: list[Event] = [Note(level="info", message=str(number)) for number in range(10_000)]
    write(state, job_id, token, notes)
    found = [event for _, event in state.events(job_id)]
    assert 4_000 < len(found) < 10_000
    assert found[-1] == notes[-1]
    [note] = [it for it in found if isinstance(it, Note) and it.level == "warning"]
    assert "5001 oldest events were dropped" in note.message


def test_the_bytes_of_events_are_bounded(
    state: JobStore, redis_client: Redis, job_id: str, token: FencingToken
) -> None:
    notes: list[Event] = [Note(level="info", message=f"{it} " + "x" * 9999) for it in range(2000)]
    write(state, job_id, token, notes)
    used = redis_client.memory_usage(events_key(job_id), samples=0) or 0
    assert used < 5 * 2**20
    assert any("were dropped" in getattr(event, "message", "") for _, event in state.events(job_id))


def test_events_continue_after_a_failover_to_a_clock_behind(
    state: JobStore, redis_client: Redis, job_id: str, token: FencingToken
) -> None:
    late = Note(level="info", message="by the lost broker")
    for key in (events_key(job_id), progress_key(job_id)):
        redis_client.xadd(key, {"event": late.model_dump_json()}, id="9999999999999-7")
    state.write(job_id, token, [step(1), saved(1), step(2)])
    written = list(state.events(job_id, after="9999999999999-7"))
    assert [event for _, event in written] == [step(1), saved(1), step(2)]
