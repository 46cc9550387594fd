"""What tenants used, by month: GPU seconds, their cost, and jobs.

Scripts count it in the changes that it belongs to (``lua/usage.lua``): jobs when they are submitted
and when they end, GPU seconds when the start ends that used them. Months are those of the broker's
clock in UTC, and are kept for 13 months.
"""

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import cast

from pydantic import Field
from redis import Redis

from tasks.clock import broker_time
from tasks.state.job_reader import read_hashes
from tasks.state.keys import USAGE
from tasks.state.record import count_in, gpu_seconds_of
from tasks.strict_model import StrictModel

MONTH = re.compile(r"\d{4}-(0[1-9]|1[0-2])", re.ASCII)
"""A month as it is written everywhere: ``2026-11``."""


class Usage(StrictModel):
    """What a tenant used in a month."""

    tenant: str
    month: str
    gpu_seconds: dict[str, float] = Field(default_factory=dict)
    """GPU seconds by memory class."""
    cost: float = 0.0
    """The cost of those that had a price."""
    unpriced_gpu_seconds: float = 0.0
    """GPU seconds that had no price."""
    currency: str | None = None
    submitted: int = 0
    succeeded: int = 0
    failed: int = 0
    cancelled: int = 0

    @property
    def gpu_hours(self) -> float:
        """GPU hours of all classes together."""
        return sum(self.gpu_seconds.values()) / 3600


class UsageStore:
    """Reads what tenants used.

    Args:
        client: A connection to Redis that decodes responses.
    """

    def __init__(self, client: Redis) -> None:
        self._redis = client

    def this_month(self) -> str:
        """Return the month of the broker's clock."""
        return f"{datetime.fromtimestamp(broker_time(self._redis), UTC):%Y-%m}"

    def of(self, tenant: str, month: str) -> Usage:
        """Return what a tenant used in a month."""
        return self._read([tenant], month)[0]

    def all(self, month: str) -> list[Usage]:
        """Return what each tenant used in a month, by name."""
        tenants = cast("set[str]", self._redis.smembers(f"{USAGE}:{month}"))
        return self._read(sorted(tenants), month)

    def _read(self, tenants: Sequence[str], month: str) -> list[Usage]:
        hashes = read_hashes(self._redis, [f"{USAGE}:{month}:{tenant}" for tenant in tenants])
        return [
            _usage(tenant, month, fields) for tenant, fields in zip(tenants, hashes, strict=True)
        ]


def next_month(month: str) -> datetime:
    """Return the beginning of the month after one."""
    year, number = map(int, month.split("-"))
    return datetime(year + number // 12, number % 12 + 1, 1, tzinfo=UTC)


def month_name(month: str) -> str:
    """Return a month in words: ``November 2026``."""
    return f"{datetime.strptime(month, '%Y-%m').replace(tzinfo=UTC):%B %Y}"


def _usage(tenant: str, month: str, fields: Mapping[str, str]) -> Usage:
    counts = {
        name: count_in(fields, name) for name in ("submitted", "succeeded", "failed", "cancelled")
    }
    return Usage(
        tenant=tenant,
        month=month,
        gpu_seconds=gpu_seconds_of(fields),
        cost=count_in(fields, "cost_micros") / 1e6,
        unpriced_gpu_seconds=count_in(fields, "unpriced_gpu_ms") / 1000,
        currency=fields.get("currency"),
        **counts,
    )
