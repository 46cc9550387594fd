"""``training-worker tenants``."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass

from rich.table import Table

from routing.fair_share import OTHERS, share_of
from tasks.settings.settings import Settings
from tasks.state.tenant_queues import TenantQueues
from worker.cli.client import client_of
from worker.cli.output import print_json, stdout


@dataclass(frozen=True)
class _Tenant:
    tenant: str
    weight: float
    limit: int | None
    in_flight: int
    waiting: dict[str, int]
    """Queue to jobs in front of it."""


def run(settings: Settings, *, json: bool) -> None:
    """List the tenants."""
    tenants = list(_tenants(client_of(settings).tenant_queues))
    if json:
        print_json([asdict(it) for it in tenants])
        return
    table = Table("tenant", "weight", "limit", "in flight", "waiting")
    for it in tenants:
        waits = ", ".join(f"{count} for {queue}" for queue, count in it.waiting.items())
        table.add_row(it.tenant, f"{it.weight:g}", str(it.limit or ""), str(it.in_flight), waits)
    stdout.print(table)


def _tenants(lanes: TenantQueues) -> Iterator[_Tenant]:
    terms, in_flight, waiting = lanes.terms(), lanes.in_flight(), lanes.waiting()
    names = {*terms, *in_flight, *(name for of_queue in waiting.values() for name in of_queue)}
    for name in sorted(names - {OTHERS}):
        its = share_of(name, terms)
        there = {queue: of[name] for queue, of in waiting.items() if name in of}
        yield _Tenant(name, its.weight, its.limit, in_flight[name], there)
