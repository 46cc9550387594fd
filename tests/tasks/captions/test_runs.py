import time
from typing import Any

import pytest
from redis import Redis

from tasks.captions.requests import CaptionModel, CaptionRequestDocument
from tasks.captions.runs import (
    MAX_ACTIVE,
    MAX_ENDED,
    CaptionRuns,
    TooManyCaptionRunsError,
    release,
)


@pytest.fixture
def runs(redis_client: Redis) -> CaptionRuns:
    return CaptionRuns(redis_client)


def request(upload: str = "a" * 32, tenant: str = "acme", **fields: Any) -> CaptionRequestDocument:
    values = {
        "tenant": tenant,
        "upload": upload,
        "files": None,
        "style": "short",
        "queue": "cpu",
        "model": CaptionModel(model="org/model", max_tokens=32),
    }
    return CaptionRequestDocument.model_validate(values | fields)


def test_run_is_recorded_and_ends_with_its_captions(runs: CaptionRuns) -> None:
    run, is_new = runs.create(request(files=("a.png", "b.png")))
    assert is_new
    assert runs.get(run.id) == run
    assert run.state == "waiting"
    assert runs.begin(run)
    assert runs.advance(run, 1, 2, {"a.png": "a cat"})
    current = runs.get(run.id)
    assert current is not None
    assert (current.state, current.done, current.total, current.attempts) == ("running", 1, 2, 1)
    runs.finish(run)
    ended = runs.get(run.id)
    assert ended is not None
    assert ended.state == "done"
    assert runs.captions(run.id) == {"a.png": "a cat"}


def test_same_request_is_one_run_until_it_ends(runs: CaptionRuns) -> None:
    first, _ = runs.create(request())
    assert runs.create(request()) == (first, False)
    runs.fail(first, "it is damaged")
    second, is_new = runs.create(request())
    assert is_new
    assert second.id != first.id
    failed = runs.get(first.id)
    assert failed is not None
    assert (failed.state, failed.error) == ("failed", "it is damaged")


def test_tenant_has_a_few_runs_at_a_time(runs: CaptionRuns) -> None:
    started = [runs.create(request(str(number) * 32))[0] for number in range(MAX_ACTIVE)]
    with pytest.raises(TooManyCaptionRunsError):
        runs.create(request())
    assert runs.create(request(tenant="zoo"))[1]
    runs.remove(started[0])
    assert runs.create(request())[1]


def test_few_ended_runs_of_a_tenant_are_kept(runs: CaptionRuns, redis_client: Redis) -> None:
    started = []
    for number in range(MAX_ENDED + 3):
        run, _ = runs.create(request(f"{number:032x}"))
        runs.advance(run, 1, 1, {"a.png": "a cat"})
        runs.finish(run)
        started.append(run.id)
    other, _ = runs.create(request(tenant="zoo"))
    last, _ = runs.create(request("f" * 32))
    kept = [it for it in started if runs.get(it) is not None]
    assert kept == started[-MAX_ENDED:]
    assert [it for it in started if runs.captions(it)] == kept
    assert runs.get(last.id)
    assert runs.get(other.id)
    keys = redis_client.keys("training:captions:run:*")
    assert isinstance(keys, list)
    assert len(keys) == MAX_ENDED + 2


def test_cancelled_run_takes_no_more_captions(runs: CaptionRuns, redis_client: Redis) -> None:
    run, _ = runs.create(request())
    runs.remove(run)
    assert not runs.begin(run)
    assert not runs.advance(run, 1, 1, {"a.png": "a cat"})
    assert runs.get(run.id) is None
    assert runs.captions(run.id) == {}
    assert redis_client.keys("training:captions:*") == []


def test_every_key_expires(runs: CaptionRuns, redis_client: Redis) -> None:
    run, _ = runs.create(request())
    lease = runs.lease(run.id, 5)
    assert lease.acquire(blocking=False)
    runs.begin(run)
    runs.advance(run, 1, 1, {"a.png": "a cat"})
    keys = redis_client.keys("training:captions:*")
    assert isinstance(keys, list)
    assert len(keys) == 5
    assert all(redis_client.ttl(key) > 0 for key in keys)
    assert not runs.lease(run.id, 5).acquire(blocking=False)
    release(lease)
    assert runs.lease(run.id, 5).acquire(blocking=False)


def test_run_without_a_worker_has_failed(
    runs: CaptionRuns, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, _ = runs.create(request())
    runs.begin(run)
    later = time.time() + 4000
    monkeypatch.setattr("tasks.captions.runs.broker_time", lambda client: later)
    lost = runs.get(run.id)
    assert lost is not None
    assert (lost.state, lost.error) == ("failed", "its worker was lost")
    # It does not count any more.
    assert runs.create(request())[1]
    assert runs.lease(run.id, 5).acquire(blocking=False)
    held = runs.get(run.id)
    assert held is not None
    assert held.state == "running"
