"""Fair shares: whose job goes next.

Jobs wait in a lane of their tenant's own in front of each queue, and the queue itself is kept
short, so that a thousand jobs of one tenant do not stand before the first one of another.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

OTHERS = "*"
"""Stands for every tenant that is not named."""

ROOM = 1
"""Messages that wait in a queue. One is enough: whoever takes it lets the next one come. Each more
stands before a tenant whose turn it would be."""

_TERMS = re.compile(r"^(?P<tenant>[\w.-]+|\*)=(?P<weight>\d+(\.\d+)?)(:(?P<limit>\d+))?$", re.ASCII)


@dataclass(frozen=True)
class TenantShare:
    """What a tenant gets.

    Attributes:
        weight: Its share beside the others', above 0.
        limit: Most jobs of it in flight at a time; None is no limit.
    """

    weight: float = 1.0
    limit: int | None = None


TenantShares = Mapping[str, TenantShare]
_USUAL = TenantShare()


def parse_tenant_shares(text: str) -> dict[str, TenantShare]:
    """The terms of tenants, as an operator writes them: ``acme=3,zoo=1:4,*=1:8``.

    Args:
        text: ``tenant=weight`` or ``tenant=weight:limit``, with commas between.

    Raises:
        ValueError: It is none.
    """
    terms: dict[str, TenantShare] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        match = _TERMS.match(part)
        if match is None or not float(match["weight"]):
            raise ValueError(f"{part!r} is not tenant=weight or tenant=weight:limit, above 0")
        if match["tenant"] in terms:
            raise ValueError(f"{match['tenant']} is there twice")
        limit = int(match["limit"]) if match["limit"] else None
        if limit == 0:
            raise ValueError(f"the limit of {match['tenant']} is 0; leave it out for none")
        terms[match["tenant"]] = TenantShare(float(match["weight"]), limit)
    return terms


def share_of(tenant: str, terms: TenantShares) -> TenantShare:
    """A tenant's own terms, or those of all others."""
    return terms.get(tenant) or terms.get(OTHERS) or _USUAL


def next_tenant(
    waiting: Sequence[str], in_flight: Mapping[str, int], terms: TenantShares
) -> str | None:
    """The tenant whose job goes next: the one with the fewest in flight for its weight.

    Args:
        waiting: Tenants with jobs waiting, the longest without a turn first; it decides ties.
        in_flight: Tenant to its jobs that have left their lane and are not over, on any queue.
        terms: What tenants get.

    Returns:
        None where nobody waits, or all are at their limit.
    """
    # With nothing in flight it is below every limit, and nobody has less. At each start of a stage
    # hundreds of tenants may wait.
    idle = next((tenant for tenant in waiting if not in_flight.get(tenant)), None)
    if idle is not None or not terms:
        return idle or min(waiting, key=in_flight.__getitem__, default=None)
    best, least = None, math.inf
    for tenant in waiting:
        there, its = in_flight.get(tenant, 0), share_of(tenant, terms)
        if (its.limit is None or there < its.limit) and there / its.weight < least:
            best, least = tenant, there / its.weight
    return best
