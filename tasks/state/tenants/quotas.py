"""Quotas of tenants: GPU hours and money a month, and waiting jobs.

They are kept in the broker, where a change counts at once, and scripts go by them
(``lua/usage.lua``): when a job is created, and before a waiting job is dispatched. A job that is
dispatched or runs is never stopped by a quota.
"""

import json
import logging
from typing import Annotated, cast

from pydantic import Field, ValidationError
from redis import Redis

from tasks.clock import broker_time
from tasks.errors import QuotaExceededError
from tasks.state import scripts
from tasks.state.keys import QUOTAS, USAGE_TTL
from tasks.state.tenants.usage import Usage, UsageStore, month_name, next_month
from tasks.strict_model import PositiveFloat, PositiveInt, StrictModel

logger = logging.getLogger(__name__)

MAX_WAITING = 1_000_000
"""The largest quota of waiting jobs; scripts write larger numbers as fractions."""
# A waiting job may be dispatched at any time.
_RETRY_WAITING_S = 60


class Quota(StrictModel):
    """A tenant's quotas; null is no quota."""

    gpu_hours: PositiveFloat | None = None
    """GPU hours a month, of all classes together."""
    money: PositiveFloat | None = None
    """The cost of GPUs a month, in the currency of ``TRAINING_GPU_PRICES``."""
    max_waiting: Annotated[PositiveInt, Field(le=MAX_WAITING)] | None = None
    """Jobs that wait in the tenant's queues at a time."""
    hold: bool = False
    """Whether a job that is submitted after a month's quota is used up waits for the next month,
    and is not refused."""

    @property
    def is_monthly(self) -> bool:
        """Whether a month's use has a quota."""
        return self.gpu_hours is not None or self.money is not None

    def used_up_by(self, used: Usage) -> str | None:
        """Return the name of the monthly quota that a month's use has reached; None for none."""
        if self.gpu_hours is not None and used.gpu_hours >= self.gpu_hours:
            return "gpu_hours"
        return "money" if self.money is not None and used.cost >= self.money else None

    def text_of(self, name: str) -> str:
        """Return a monthly quota in words."""
        return f"{self.gpu_hours:g} GPU hours" if name == "gpu_hours" else f"budget of {self.money}"


class Quotas:
    """Reads and changes quotas.

    Args:
        client: A connection to Redis that decodes responses.
    """

    def __init__(self, client: Redis) -> None:
        self._redis = client
        self._usage = UsageStore(client)

    def all(self) -> dict[str, Quota]:
        """Return the quotas by tenant; ``*`` is every tenant without its own."""
        texts = cast("dict[str, str]", self._redis.hgetall(QUOTAS))
        return {tenant: _parsed(tenant, text) for tenant, text in sorted(texts.items())}

    def of(self, tenant: str) -> Quota:
        """Return the quotas that a tenant has."""
        own, others = cast("list[str | None]", self._redis.hmget(QUOTAS, tenant, "*"))
        return _parsed(tenant, own or others or "{}")

    def change(self, tenant: str, changes: dict[str, float | bool | None]) -> Quota:
        """Change some of a tenant's quotas, and return all that it has then.

        Args:
            tenant: The tenant, or ``*`` for every tenant without its own.
            changes: Fields of ``Quota``; None removes one.

        Raises:
            pydantic.ValidationError: A quota is out of its range.
        """
        Quota.model_validate(changes)
        text = scripts.set_quota(
            self._redis,
            quotas_key=QUOTAS,
            ttl_s=int(USAGE_TTL.total_seconds()),
            tenant=tenant,
            changes=changes,
        )
        return _parsed(tenant, text)

    def remove(self, tenant: str) -> bool:
        """Remove a tenant's quotas; return whether it had any."""
        return bool(self._redis.hdel(QUOTAS, tenant))

    def renew(self) -> None:
        """Keep the quotas for another 13 months."""
        self._redis.expire(QUOTAS, USAGE_TTL)

    def used_up(self, tenant: str) -> str | None:
        """Return which monthly quota a tenant has used up, in words; None if it has not."""
        quota = self.of(tenant)
        if not quota.is_monthly:
            return None
        month = self._usage.this_month()
        name = quota.used_up_by(self._usage.of(tenant, month))
        if name is None:
            return None
        return f"{tenant} has used its {quota.text_of(name)} of {month_name(month)}"

    def held_tenants(self) -> set[str]:
        """Return the tenants whose waiting jobs a monthly quota holds."""
        quotas = self.all()
        if not any(quota.is_monthly for quota in quotas.values()):
            return set()
        return {
            used.tenant
            for used in self._usage.all(self._usage.this_month())
            if (quotas.get(used.tenant) or quotas.get("*") or Quota()).used_up_by(used)
        }

    def refusal(self, tenant: str, name: str) -> QuotaExceededError:
        """Return the error of a job that a quota refuses.

        Args:
            tenant: The job's tenant.
            name: The field of ``Quota`` that a script has returned.
        """
        quota, month = self.of(tenant), self._usage.this_month()
        if name == "max_waiting":
            message = f"{tenant} has {quota.max_waiting} waiting jobs, its maximum"
            remedy = "submit again when some have started, or ask the operator to raise it"
            return QuotaExceededError(f"{message}; {remedy}", _RETRY_WAITING_S)
        message = f"{tenant} has used its {quota.text_of(name)} of {month_name(month)}"
        renewal = next_month(month)
        remedy = f"submit again from {renewal:%Y-%m-%d} (UTC), or ask the operator to raise it"
        left_s = renewal.timestamp() - broker_time(self._redis)
        return QuotaExceededError(f"{message}; {remedy}", max(1, round(left_s)))


def _parsed(tenant: str, text: str) -> Quota:
    """Parse a tenant's quotas without those that cannot be read, which the scripts ignore too."""
    try:
        return Quota.model_validate_json(text)
    except ValidationError as error:
        unread = {details["loc"][0] for details in error.errors() if details["loc"]}
    logger.warning("quotas of %s cannot be read: %s", tenant, ", ".join(map(str, unread)) or "all")
    if not unread:
        return Quota()
    return Quota(**{name: it for name, it in json.loads(text).items() if name not in unread})
