"""Fair shares: which tenant's job is dispatched next.

Jobs wait in a tenant queue in front of each queue, and the queue itself is kept short, so that a
thousand jobs of one tenant do not delay the first job of another.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

OTHERS = "*"
"""The name under which the share of every unnamed tenant is given."""

ROOM = 1
"""How many messages wait in a queue. One is enough, because a worker that takes it dispatches the
next; each further one would precede a tenant with a better claim."""

_SHARE = re.compile(r"^(?P<tenant>[\w.-]+|\*)=(?P<weight>\d+(\.\d+)?)(:(?P<limit>\d+))?$", re.ASCII)


@dataclass(frozen=True)
class TenantShare:
    """A tenant's share of the fleet.

    Attributes:
        weight: The share relative to other tenants', above 0.
        limit: The most jobs in flight at a time; None is no limit.
    """

    weight: float = 1.0
    limit: int | None = None


TenantShares = Mapping[str, TenantShare]
_DEFAULT = TenantShare()


def parse_tenant_shares(text: str) -> dict[str, TenantShare]:
    """Parse the shares of tenants: ``acme=3,zoo=1:4,*=1:8``.

    Args:
        text: ``tenant=weight`` or ``tenant=weight:limit``, separated by commas.

    Raises:
        ValueError: The text is malformed.
    """
    shares: dict[str, TenantShare] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        match = _SHARE.match(part)
        if match is None or not float(match["weight"]):
            raise ValueError(f"{part!r} is not tenant=weight or tenant=weight:limit, above 0")
        if match["tenant"] in shares:
            raise ValueError(f"{match['tenant']} has two shares")
        limit = int(match["limit"]) if match["limit"] else None
        if limit == 0:
            raise ValueError(f"the limit of {match['tenant']} is 0; omit it for no limit")
        shares[match["tenant"]] = TenantShare(float(match["weight"]), limit)
    return shares


def share_of(tenant: str, shares: TenantShares) -> TenantShare:
    """Return a tenant's own share, or that of all others."""
    return shares.get(tenant) or shares.get(OTHERS) or _DEFAULT


def next_tenant(
    waiting: Sequence[str], in_flight: Mapping[str, int], shares: TenantShares
) -> str | None:
    """Return the tenant whose job is next: the one with the fewest jobs in flight for its weight.

    Args:
        waiting: The tenants with waiting jobs, the longest without a dispatch first; the order
            decides ties.
        in_flight: The jobs of each tenant that have left their tenant queue and not ended, on any
            queue.
        shares: The tenants' shares.

    Returns:
        None if no tenant waits, or all are at their limit.
    """
    # A tenant with nothing in flight is below every limit, and none has less. This is asked at each
    # start of a stage, and hundreds of tenants may wait.
    idle = next((tenant for tenant in waiting if not in_flight.get(tenant)), None)
    if idle is not None or not shares:
        return idle or min(waiting, key=in_flight.__getitem__, default=None)
    best, min_load = None, math.inf
    for tenant in waiting:
        jobs, share = in_flight.get(tenant, 0), share_of(tenant, shares)
        load = jobs / share.weight
        if (share.limit is None or jobs < share.limit) and load < min_load:
            best, min_load = tenant, load
    return best
