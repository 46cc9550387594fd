from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from typing import Any, cast

import httpx2
import pytest
from prometheus_client import CollectorRegistry
from redis import ConnectionError as Away
from redis import Redis

from routing.classes import MemoryClass
from routing.fair_share import parse_tenant_shares
from routing.queues import ALL_QUEUES
from tasks.cache.index import PackIndex
from tasks.events import Note
from tasks.metrics import METRICS
from tasks.stages.submit import submit
from tasks.state.control import JobControl
from tasks.state.fleet_snapshot import Running, read_fleet
from tasks.state.job_store import DispatchOutcome, JobStore
from tasks.state.keys import USAGE
from tasks.state.tenants.quotas import Quotas
from tasks.state.tenants.tenant_queues import TenantQueues
from tasks.state.tenants.usage import UsageStore
from tasks.state.workers import GpuStats, WorkerHeartbeat, WorkerInfo
from tasks.store import pack_key
from worker.maintenance import exporter
from worker.maintenance.exporter import FleetCollector

HOUR = timedelta(hours=1)
Ask = Callable[..., float | None]


@pytest.fixture
def ask(redis_client: Redis) -> Ask:
    """Return the value of a sample."""
    registry = CollectorRegistry()
    registry.register(FleetCollector(redis_client, HOUR))

    def value(name: str, **labels: str) -> float | None:
        return registry.get_sample_value(f"training_{name}", labels)

    return value


@pytest.fixture
def jobs(redis_client: Redis) -> JobStore:
    """Jobs of a fleet whose queues have room for one message each."""
    everything = WorkerInfo(queues=ALL_QUEUES, memory_class=None)
    TenantQueues(redis_client, HOUR).publish_fleet([everything], {}, HOUR)
    return JobStore(redis_client, HOUR)


@pytest.fixture
def submit_for(jobs: JobStore, job_document: dict[str, Any]) -> Callable[[str], DispatchOutcome]:
    return lambda tenant: submit({**job_document, "tenant": tenant}, jobs, "result").outcome


def test_an_empty_fleet_exports_exactly_the_declared_metrics(redis_client: Redis) -> None:
    families = {family.name: family for family in FleetCollector(redis_client, HOUR).collect()}
    assert set(families) == {metric.name.removesuffix("_total") for metric in METRICS}
    for metric in METRICS:
        family = families[metric.name.removesuffix("_total")]
        assert (family.type, family.documentation) == (metric.kind, metric.help)


def test_waiting_jobs_are_exported_by_queue_and_tenant(
    redis_client: Redis, submit_for: Callable[[str], DispatchOutcome], jobs: JobStore, ask: Ask
) -> None:
    assert submit_for("a") == DispatchOutcome.SENT
    assert [submit_for("a"), submit_for("b")] == [DispatchOutcome.WAITING] * 2
    assert ask("queue_jobs", queue="cpu", tenant="a") == 2
    assert ask("queue_jobs", queue="cpu", tenant="b") == 1
    assert ask("queue_jobs", queue="cpu", tenant="") == 0
    assert ask("jobs_in_flight") == 1
    # Jobs of a backend that no worker has read yet.
    redis_client.rpush("cpu", "a message", "another one")
    assert ask("queue_jobs", queue="cpu", tenant="") == 2
    assert ask("jobs_running", queue="cpu") == 0
    assert ask("queue_jobs", queue="gpu.40gb", tenant="") == 0


def test_the_oldest_wait_begins_in_the_tenant_queue(
    redis_client: Redis, submit_for: Callable[[str], DispatchOutcome], ask: Ask
) -> None:
    redis_client.rpush("cpu", "a message")
    for tenant in ("a", "a", "b"):
        submit_for(tenant)
    assert ask("oldest_wait_seconds", queue="gpu.40gb") == 0
    [oldest, _] = cast(
        "list[str]", redis_client.zrange("training:tenant_queues_since:cpu:a", 0, -1)
    )
    redis_client.zincrby("training:tenant_queues_since:cpu:a", -1000, oldest)
    assert 1000 < (ask("oldest_wait_seconds", queue="cpu") or 0) < 1100
    assert 1000 < (ask("tenant_oldest_wait_seconds", queue="cpu", tenant="a") or 0) < 1100
    assert (ask("tenant_oldest_wait_seconds", queue="cpu", tenant="b") or 0) < 100
    JobControl(redis_client, HOUR).cancel(oldest)
    assert (ask("oldest_wait_seconds", queue="cpu") or 0) < 100
    assert ask("queue_jobs", queue="cpu", tenant="a") == 1


def test_all_but_the_largest_tenants_share_a_series(
    redis_client: Redis,
    submit_for: Callable[[str], DispatchOutcome],
    ask: Ask,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(exporter, "MAX_TENANTS", 2)
    redis_client.rpush("cpu", "a message", "")
    for tenant in ("big", "big", "big", "next", "next", "small", "tiny"):
        submit_for(tenant)
    jobs = [
        ask("queue_jobs", queue="cpu", tenant=tenant)
        for tenant in ("big", "next", "small", "*", "")
    ]
    assert jobs == [3, 2, None, 2, 2]


def test_running_stages_and_retries_are_exported(
    jobs: JobStore, job_document: dict[str, Any], ask: Ask, redis_client: Redis
) -> None:
    job_id = submit(job_document, jobs, "result").job_id
    info = WorkerInfo(queues=("cpu",), memory_class=None)
    WorkerHeartbeat(redis_client, "cpu@here", info, HOUR).renew()
    assert ask("workers", **{"class": "cpu", "state": "idle"}) == 1
    assert ask("workers", **{"class": "cpu", "state": "busy"}) == 0
    token = jobs.begin(job_id, "prepare", worker="cpu@here", queue="cpu", tag="t")[1]
    assert ask("jobs_running", queue="cpu") == 1
    assert ask("workers", **{"class": "cpu", "state": "busy"}) == 1
    assert ask("queue_jobs", queue="cpu", tenant="default") is None
    jobs.release(job_id, token, Note(level="info", message="later"), delay_s=60)
    assert ask("jobs_running", queue="cpu") == 0
    assert ask("retry_jobs") == 1
    assert ask("jobs_in_flight") == 0


def test_a_newer_workers_unknown_queue_is_exported(redis_client: Redis, ask: Ask) -> None:
    info = WorkerInfo(queues=("gpu.newer", "cpu"), memory_class=None)
    WorkerHeartbeat(redis_client, "newer@here", info, HOUR).renew()
    assert ask("queue_workers", queue="gpu.newer") == ask("queue_workers", queue="cpu") == 1


def test_gpu_stats_and_quarantine_are_exported(redis_client: Redis, ask: Ask) -> None:
    stats = GpuStats(memory_bytes=80, used_bytes=60, utilization=0.5, temperature_c=71)
    info = WorkerInfo(
        queues=("gpu.40gb", "gpu.24gb"), memory_class=MemoryClass.GB40, gpu_uuid="GPU-1"
    )
    heartbeat = WorkerHeartbeat(redis_client, "gpu@here", info, HOUR, lambda: stats)
    heartbeat.renew()
    labels = {"worker": "gpu@here", "gpu": "GPU-1", "class": "40gb"}
    names = ("memory_bytes", "memory_used_bytes", "utilization_ratio", "temperature_celsius")
    assert [ask(f"gpu_{name}", **labels) for name in names] == [80, 60, 0.5, 71]
    assert ask("gpu_quarantined", **labels) == 0
    assert [ask("queue_workers", queue=queue) for queue in ("gpu.24gb", "gpu.80gb")] == [1, 0]
    heartbeat.set_quarantine("XID 79")
    assert ask("gpu_quarantined", **labels) == 1
    assert ask("queue_workers", queue="gpu.24gb") == 0
    assert ask("workers", **{"class": "40gb", "state": "quarantined"}) == 1


def test_the_cache_is_exported_by_kind(redis_client: Redis, ask: Ask) -> None:
    registry = PackIndex(redis_client, HOUR, HOUR)
    for kind, size in (("text", 10), ("latents", 200), ("latents", 30)):
        registry.add(pack_key(kind, str(size)), size, [f"entry {size}"])
    assert [ask("cache_bytes", kind=kind) for kind in ("text", "latents")] == [10, 230]
    assert [ask("cache_packs", kind=kind) for kind in ("text", "latents")] == [1, 2]


def test_an_unavailable_broker_exports_no_zeros(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    assert ask("broker_up") == 1
    assert ask("jobs_total", type="FLUX_LORA", status="failed") == 0

    def unavailable(*_: object) -> None:
        raise Away("unavailable")

    monkeypatch.setattr(exporter, "read_fleet", unavailable)
    assert ask("broker_up") == 0
    assert ask("jobs_total", type="FLUX_LORA", status="failed") is None
    assert ask("jobs_in_flight") is None
    assert (ask("exporter_errors_total") or 0) >= 2


@pytest.mark.parametrize(
    ("host", "status"), [("localhost", 200), ("metrics:9464", 200), ("evil.example", 421)]
)
def test_metrics_answer_to_configured_host_names_only(
    redis_client: Redis, host: str, status: int
) -> None:
    with served(redis_client) as url:
        for path in ("/metrics", "/workers-wanted"):
            assert httpx2.get(f"{url}{path}", headers={"Host": host}).status_code == status


@contextmanager
def served(client: Redis) -> Iterator[str]:
    """Yield the address of a fleet's exporter."""
    server = exporter.make_server(CollectorRegistry(), client, "127.0.0.1", 0, ["metrics"])
    with ThreadPoolExecutor() as pool:
        pool.submit(server.serve_forever)
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        server.server_close()


def test_workers_are_wanted_for_jobs_within_their_tenants_limits(
    redis_client: Redis, submit_for: Callable[[str], DispatchOutcome], jobs: JobStore, ask: Ask
) -> None:
    everything = WorkerInfo(queues=ALL_QUEUES, memory_class=None)
    shares = parse_tenant_shares("a=1:2,*=1")
    TenantQueues(redis_client, HOUR).publish_fleet([everything], shares, HOUR)
    for tenant in "aaaabb":
        submit_for(tenant)
    first = read_fleet(redis_client)
    assert first.workers_wanted()["cpu"] == 2 + 2
    running = replace(first, running=[Running("gpu.40gb", "w", "a")])
    assert running.workers_wanted() == dict.fromkeys(ALL_QUEUES, 0) | {"gpu.40gb": 1, "cpu": 1 + 2}
    assert ask("workers_wanted", queue="cpu") == 4
    with served(redis_client) as url:
        assert httpx2.get(f"{url}/workers-wanted").json() == first.workers_wanted()


def test_no_worker_is_wanted_for_jobs_that_a_quota_holds(
    redis_client: Redis, submit_for: Callable[[str], DispatchOutcome], jobs: JobStore
) -> None:
    TenantQueues(redis_client, HOUR).publish_fleet([], {}, HOUR)
    quotas = Quotas(redis_client)
    quotas.change("a", {"gpu_hours": 1, "hold": True})
    quotas.change("*", {"money": 5, "hold": True})
    for tenant in "abc":
        submit_for(tenant)
    assert read_fleet(redis_client).workers_wanted()["cpu"] == 3
    month = UsageStore(redis_client).this_month()
    redis_client.hset(f"{USAGE}:{month}:a", "gpu_ms:40gb", 3_600_000)
    redis_client.hset(f"{USAGE}:{month}:b", "cost_micros", 5_000_000)
    assert read_fleet(redis_client).workers_wanted()["cpu"] == 1
    assert quotas.held_tenants() == {"a", "b"}
    assert quotas.used_up("b") is not None
    assert quotas.used_up("c") is None


def test_an_autoscaler_learns_that_the_broker_is_away() -> None:
    with Redis(port=1) as client, served(client) as url:
        assert httpx2.get(f"{url}/workers-wanted").status_code == 503
