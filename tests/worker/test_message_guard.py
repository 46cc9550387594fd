import json
import logging
from datetime import timedelta
from typing import Any

import pytest
from redis import Redis

from tasks.state.counters import Counters
from tasks.state.record import UNSTARTED_FIELD
from tests.poison import message
from worker.kombu_redis.unreadable import RateLimit, UnreadableMessageError
from worker.message_guard import MessageGuard, unreadable_messages

HOUR = timedelta(hours=1)
KEY = "training:job:a-job"


def delivered(times: int, attempt: str | None = None) -> bytes:
    properties = {"deliveries": times, "attempt": attempt}
    document = message("cpu", [["a-job"], {}, None], properties=properties)
    return json.dumps(document).encode()


def test_a_message_that_never_starts_is_refused(redis_client: Redis) -> None:
    guard = MessageGuard(redis_client)
    guard.read(delivered(4), "cpu")
    with pytest.raises(UnreadableMessageError, match="delivered 5 times without a start"):
        guard.read(delivered(5), "cpu")
    assert not redis_client.exists(KEY)


def test_a_start_of_its_job_resets_the_count(redis_client: Redis) -> None:
    redis_client.hset(KEY, "attempt", "7")
    guard = MessageGuard(redis_client)
    properties = guard.read(delivered(5, "6"), "cpu")["properties"]
    assert (properties["deliveries"], properties["attempt"]) == (0, "7")
    assert not redis_client.hexists(KEY, UNSTARTED_FIELD)
    for _ in range(2):
        with pytest.raises(UnreadableMessageError):
            guard.read(delivered(5, "7"), "cpu")
    assert redis_client.hget(KEY, UNSTARTED_FIELD) == "2"


def test_the_list_is_capped_counted_and_logged_without_text(
    redis_client: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    unreadable = unreadable_messages(redis_client, HOUR)
    for number in range(150):
        unreadable.add(b"secret " * 1000 + b"%d" % number, "cpu", "is wrong")
    aside = list(unreadable)
    assert len(aside) == 100
    assert {len(each.text) for each in aside} == {4000}
    assert aside[0].size == 7003
    assert 0 < redis_client.ttl("training:unreadable") <= 30 * 86400
    counts = Counters(redis_client, HOUR).read()
    assert counts["training_unreadable_messages_total|cpu"] == 150
    assert len(caplog.records) <= 2
    assert "secret" not in caplog.text
    assert unreadable.discard() == 100
    assert list(unreadable) == []


def test_dropped_log_records_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("worker.kombu_redis.unreadable.time.monotonic", lambda: now[0])
    limit = RateLimit(5)

    def passes(text: str) -> Any:
        record = logging.LogRecord("x", logging.ERROR, "x", 1, text, (), None)
        return record.getMessage() if limit.filter(record) else None

    assert [passes("a"), passes("a"), passes("b"), passes("a")] == ["a", None, "b", None]
    now[0] += 6
    assert passes("a") == "a (and 2 more like this)"
