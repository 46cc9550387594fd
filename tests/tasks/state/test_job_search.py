from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from redis import Redis

from tasks.stages.submit import submit
from tasks.state.control import JobControl
from tasks.state.job_search import JobFilter, find_jobs, parse_labels
from tasks.state.job_store import JobStore

HOUR = timedelta(hours=1)


@pytest.fixture
def add(state: JobStore, job_document: dict[str, Any]) -> Callable[..., str]:
    return lambda **more: submit({**job_document, **more}, state, "result").job_id


def test_jobs_are_found_by_all_filters(
    state: JobStore, add: Callable[..., str], redis_client: Redis
) -> None:
    first = add(name="cat", tenant="acme", labels={"customer": "17", "team": "a"})
    second = add(name="dog", tenant="zoo", labels={"customer": "18"})
    JobControl(redis_client, HOUR).cancel(second)

    def found(**wanted: Any) -> list[str]:
        return find_jobs(state, JobFilter(**wanted), 10).ids

    assert found() == [second, first]
    assert found(text="CAT") == [first]
    assert found(text=second[:8]) == [second]
    assert found(status="cancelled") == [second]
    assert found(tenant="acme") == [first]
    assert found(queue="cpu") == [first]
    assert found(queue="gpu.40gb") == [second, first]
    assert found(type="SDXL_LORA") == []
    assert found(labels={"customer": "17"}) == [first]
    assert found(labels={"customer": None}) == [second, first]
    assert found(labels={"customer": None, "team": "a"}) == [first]
    now = datetime.now(UTC)
    assert found(created_after=now - HOUR, created_before=now + HOUR) == [second, first]
    assert found(created_after=now + HOUR) == found(created_before=now - HOUR) == []


def test_pages_and_bounded_searches_resume(state: JobStore, add: Callable[..., str]) -> None:
    ids = [add(labels={"odd": str(number % 2)}) for number in range(7)][::-1]
    page = find_jobs(state, JobFilter(), 3)
    assert page.ids == ids[:3]
    page = find_jobs(state, JobFilter(), 10, after=page.last)
    assert (page.ids, page.last) == (ids[3:], None)
    none = find_jobs(state, JobFilter(text="nothing"), 3, max_searched=5)
    assert none.ids == []
    odd = find_jobs(state, JobFilter(labels={"odd": "1"}), 2)
    assert odd.ids == [ids[1], ids[3]]
    assert find_jobs(state, JobFilter(labels={"odd": "1"}), 2, after=odd.last).ids == [ids[5]]


def test_labels_to_search_for_are_parsed() -> None:
    assert parse_labels(["a=b=c", "d", "e="]) == {"a": "b=c", "d": None, "e": ""}
    with pytest.raises(ValueError, match="name=value"):
        parse_labels(["=b"])
