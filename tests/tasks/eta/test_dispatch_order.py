from dataclasses import replace

from routing.fair_share import TenantShare
from tasks.eta.dispatch_order import (
    MAX_STARTS,
    Fleet,
    Server,
    Start,
    Waiting,
    expected_starts,
    why_unknown,
)

QUEUE = "gpu.40gb"


def job(name: str, seconds: float | None = 100.0, tenant: str = "a") -> Waiting:
    return Waiting(name, tenant, seconds, "" if seconds is not None else "no run")


def fleet(*servers: Server, **tenants: list[Waiting]) -> Fleet:
    return Fleet(list(servers), {}, {QUEUE: tenants}, {}, {})


def starts(of: Fleet) -> dict[str, float | None]:
    return {name: start.in_s for name, start in expected_starts(of).items()}


def busy(seconds: float | None, tenant: str | None = "a") -> Server:
    return Server((QUEUE,), seconds, tenant, "" if seconds is not None else "takes longer")


def test_jobs_start_one_after_another() -> None:
    of = fleet(busy(60.0), a=[job("1"), job("2", 40.0), job("3")])
    assert expected_starts(of) == {"1": Start(0, 60.0), "2": Start(1, 160.0), "3": Start(2, 200.0)}


def test_every_worker_takes_jobs() -> None:
    of = fleet(busy(60.0), Server((QUEUE,)), a=[job("1"), job("2"), job("3")])
    assert starts(of) == {"1": 0.0, "2": 60.0, "3": 100.0}


def test_sent_jobs_precede_and_tenants_share() -> None:
    of = fleet(busy(10.0), a=[job("a1"), job("a2")], b=[job("b1", tenant="b")])
    of = replace(of, sent={QUEUE: [job("sent")]}, in_flight={"a": 2})
    assert starts(of) == {"sent": 10.0, "b1": 110.0, "a1": 210.0, "a2": 310.0}


def test_a_tenant_at_its_limit_waits_for_its_own_jobs() -> None:
    of = fleet(busy(50.0), Server((QUEUE,)), a=[job("a1")], b=[job("b1", tenant="b")])
    of = replace(of, in_flight={"a": 1}, shares={"a": TenantShare(1.0, 1)})
    assert starts(of) == {"b1": 0.0, "a1": 50.0}


def test_blocked_tenants_end_the_simulation() -> None:
    of = fleet(Server((QUEUE,)), Server((QUEUE,)), a=[job("a1")])
    of = replace(of, in_flight={"a": 1}, shares={"a": TenantShare(1.0, 1)})
    assert starts(of) == {}


def test_a_held_tenant_delays_no_other() -> None:
    of = fleet(Server((QUEUE,)), a=[job("a1")], b=[job("b1", tenant="b")])
    assert starts(replace(of, held={"a"})) == {"b1": 0.0}


def test_a_larger_gpu_helps_once_its_own_queue_is_empty() -> None:
    large = Server(("gpu.80gb", QUEUE))
    of = fleet(busy(500.0), large, a=[job("small")])
    of = replace(of, waiting={**of.waiting, "gpu.80gb": {"a": [job("large", 30.0)]}})
    assert expected_starts(of) == {"large": Start(0, 0.0), "small": Start(0, 30.0)}


def test_an_unknown_end_leaves_times_unknown_and_the_order_known() -> None:
    of = fleet(busy(None), a=[job("1"), job("2")])
    assert expected_starts(of) == {"1": Start(0, None), "2": Start(1, None)}
    assert why_unknown(of, QUEUE) == "takes longer"
    behind = fleet(busy(5.0), a=[job("1", None), job("2")])
    assert expected_starts(behind) == {"1": Start(0, 5.0), "2": Start(1, None)}
    assert why_unknown(behind, QUEUE) == "no run"
    assert "no live worker" in why_unknown(fleet(a=[job("1")]), QUEUE)


def test_other_workers_bound_a_start_behind_an_unknown_end() -> None:
    of = fleet(busy(None), busy(70.0), a=[job("1"), job("2")])
    assert starts(of) == {"1": 70.0, "2": 170.0}


def test_a_long_queue_costs_a_bounded_time() -> None:
    of = fleet(busy(1.0), a=[job(str(number)) for number in range(MAX_STARTS + 10)])
    assert len(expected_starts(of)) == MAX_STARTS
