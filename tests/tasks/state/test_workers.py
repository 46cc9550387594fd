from datetime import timedelta

from redis import Redis

from routing.classes import MemoryClass
from tasks.state.workers import (
    WorkerHeartbeat,
    WorkerInfo,
    live_workers,
    next_larger_class,
    why_unserved,
)

SOON = timedelta(minutes=1)


def note(client: Redis, name: str, memory_class: MemoryClass | None) -> WorkerHeartbeat:
    noted = WorkerHeartbeat(
        client, name, WorkerInfo(queues=("q",), memory_class=memory_class), SOON
    )
    noted.renew()
    return noted


def test_workers_are_there_until_they_go_or_their_time_is_over(redis_client: Redis) -> None:
    assert live_workers(redis_client) == {}
    cpu = note(redis_client, "cpu@here", None)
    note(redis_client, "gpu@here", MemoryClass.GB24)
    assert live_workers(redis_client) == {
        "cpu@here": WorkerInfo(queues=("q",), memory_class=None),
        "gpu@here": WorkerInfo(queues=("q",), memory_class=MemoryClass.GB24),
    }
    assert 0 < redis_client.ttl("training:worker:cpu@here") <= 60
    cpu.deregister()
    assert list(live_workers(redis_client)) == ["gpu@here"]


def test_the_next_larger_class_is_one_that_the_fleet_has(redis_client: Redis) -> None:
    for number, memory_class in enumerate((None, MemoryClass.GB24, MemoryClass.GB80)):
        note(redis_client, f"w{number}", memory_class)
    assert next_larger_class(redis_client, MemoryClass.GB24) == MemoryClass.GB80
    assert next_larger_class(redis_client, MemoryClass.GB80) is None
    assert next_larger_class(redis_client, None) is None


def test_a_quarantined_worker_says_why_and_is_nobodys_next_larger_class(
    redis_client: Redis,
) -> None:
    big = note(redis_client, "big", MemoryClass.GB80)
    big.set_quarantine("XID 79")
    assert live_workers(redis_client)["big"].quarantined == "XID 79"
    assert next_larger_class(redis_client, MemoryClass.GB24) is None
    big.set_quarantine(None)
    assert next_larger_class(redis_client, MemoryClass.GB24) == MemoryClass.GB80


def test_a_queue_that_nobody_serves_is_told_with_what_there_is(redis_client: Redis) -> None:
    assert why_unserved(redis_client, "q") == "no live worker serves q: no worker is live"
    here = note(redis_client, "here", MemoryClass.GB24)
    assert why_unserved(redis_client, "q") is None
    assert why_unserved(redis_client, "r") == "no live worker serves r: live workers serve q"
    here.set_quarantine("XID 79")
    assert why_unserved(redis_client, "q") == (
        "no live worker serves q: no worker is live; here is quarantined: XID 79"
    )


def test_a_queue_of_an_engine_that_nobody_has_is_told_with_what_to_set(
    redis_client: Redis,
) -> None:
    note(redis_client, "here", MemoryClass.GB40)
    told = why_unserved(redis_client, "gpu.40gb.invoke-training")
    assert told is not None
    assert told.startswith("no live worker serves gpu.40gb.invoke-training")
    assert "TRAINING_INVOKE_PYTHON" in told


def test_the_next_larger_class_is_of_a_worker_that_has_the_engine(redis_client: Redis) -> None:
    note(redis_client, "without", MemoryClass.GB40)
    assert next_larger_class(redis_client, MemoryClass.GB24, "invoke-training") is None
    presence = WorkerInfo(
        queues=("q",), memory_class=MemoryClass.GB80, engines=("diffusers", "invoke-training")
    )
    WorkerHeartbeat(redis_client, "with", presence, SOON).renew()
    found = next_larger_class(redis_client, MemoryClass.GB24, "invoke-training")
    assert found == MemoryClass.GB80
