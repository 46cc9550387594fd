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

TTL = timedelta(minutes=1)


def register(client: Redis, name: str, memory_class: MemoryClass | None) -> WorkerHeartbeat:
    heartbeat = WorkerHeartbeat(
        client, name, WorkerInfo(queues=("q",), memory_class=memory_class), TTL
    )
    heartbeat.renew()
    return heartbeat


def test_workers_are_live_until_they_deregister_or_expire(redis_client: Redis) -> None:
    assert live_workers(redis_client) == {}
    cpu = register(redis_client, "cpu@here", None)
    register(redis_client, "gpu@here", MemoryClass.GB24)
    assert live_workers(redis_client) == {
        "cpu@here": WorkerInfo(queues=("q",), memory_class=None),
        "gpu@here": WorkerInfo(queues=("q",), memory_class=MemoryClass.GB24),
    }
    assert 0 < redis_client.ttl("training:worker:cpu@here") <= 60
    cpu.deregister()
    assert list(live_workers(redis_client)) == ["gpu@here"]


def test_the_next_larger_class_has_a_live_worker(redis_client: Redis) -> None:
    for number, memory_class in enumerate((None, MemoryClass.GB24, MemoryClass.GB80)):
        register(redis_client, f"w{number}", memory_class)
    assert next_larger_class(redis_client, MemoryClass.GB24) == MemoryClass.GB80
    assert next_larger_class(redis_client, MemoryClass.GB80) is None
    assert next_larger_class(redis_client, None) is None


def test_quarantined_workers_do_not_count(redis_client: Redis) -> None:
    big = register(redis_client, "big", MemoryClass.GB80)
    big.set_quarantine("XID 79")
    assert live_workers(redis_client)["big"].quarantined == "XID 79"
    assert next_larger_class(redis_client, MemoryClass.GB24) is None
    big.set_quarantine(None)
    assert next_larger_class(redis_client, MemoryClass.GB24) == MemoryClass.GB80


def test_an_unserved_queue_is_explained(redis_client: Redis) -> None:
    assert why_unserved(redis_client, "q") == "no live worker serves q: none takes jobs"
    here = register(redis_client, "here", MemoryClass.GB24)
    assert why_unserved(redis_client, "q") is None
    assert why_unserved(redis_client, "r") == "no live worker serves r: live workers serve q"
    here.set_quarantine("XID 79")
    assert why_unserved(redis_client, "q") == (
        "no live worker serves q: none takes jobs; here is quarantined: XID 79"
    )


def test_an_unserved_engine_queue_names_its_setting(redis_client: Redis) -> None:
    register(redis_client, "here", MemoryClass.GB40)
    reason = why_unserved(redis_client, "gpu.40gb.invoke-training")
    assert reason is not None
    assert reason.startswith("no live worker serves gpu.40gb.invoke-training")
    assert "TRAINING_INVOKE_PYTHON" in reason


def test_the_next_larger_class_has_the_engine(redis_client: Redis) -> None:
    register(redis_client, "without", MemoryClass.GB40)
    assert next_larger_class(redis_client, MemoryClass.GB24, "invoke-training") is None
    info = WorkerInfo(
        queues=("q",), memory_class=MemoryClass.GB80, engines=("diffusers", "invoke-training")
    )
    WorkerHeartbeat(redis_client, "with", info, TTL).renew()
    larger = next_larger_class(redis_client, MemoryClass.GB24, "invoke-training")
    assert larger == MemoryClass.GB80
