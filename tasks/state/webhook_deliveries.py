"""Deliveries of jobs' own webhooks: a log for each job, and what is due.

The scripts that change a job write a delivery in the same change (``lua/webhooks.lua``). A worker
claims what is due and records how each attempt ended.
"""

import logging
from datetime import datetime, timedelta
from typing import Literal, NamedTuple, cast

from pydantic import BaseModel, ConfigDict, ValidationError
from redis import Redis

from tasks.contract import record_key
from tasks.errors import ErrorCode, InvalidStateError, JobError
from tasks.jobs.webhook import JobWebhook, WebhookEvent
from tasks.state import scripts
from tasks.state.keys import DELIVERIES_SUFFIX, WEBHOOK_TENANTS

logger = logging.getLogger(__name__)

DeliveryStatus = Literal["pending", "delivered", "exhausted", "superseded", "dropped"]

# Tenants of a round.
_MAX_TENANTS = 1000


class Delivery(BaseModel):
    """A delivery of a job's webhook."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True, extra="ignore")

    sequence: int = 0
    """Its number among the job's deliveries, in the order of the events."""
    event: WebhookEvent
    at: datetime
    """When the event happened."""
    status: DeliveryStatus
    """``superseded`` by newer progress, ``dropped`` as too many were pending."""
    attempts: int
    """The attempts so far, without those before the last redelivery by command."""
    tried_at: datetime | None = None
    """When the last attempt began or ended."""
    reason: str | None = None
    """How the last attempt ended."""
    due_at: datetime | None = None
    """When the next attempt is due."""


class DeliveryContent(Delivery):
    """A delivery with what its body is made of."""

    text: str
    """The event as JSON."""
    result: str | None = None
    """The job's result as JSON, at its end."""
    error: str | None = None
    error_code: ErrorCode | None = None
    error_stage: str | None = None

    @property
    def failure(self) -> JobError | None:
        """The error that ended the job."""
        if self.error_code is None:
            return None
        return JobError(self.error or "", self.error_code, self.error_stage or "")


class ClaimedDelivery(NamedTuple):
    """A delivery that the caller attempts.

    Attributes:
        tenant: Its job's owner.
        job_id: Its job.
        webhook: Where it goes.
        delivery: What it is.
    """

    tenant: str
    job_id: str
    webhook: JobWebhook
    delivery: DeliveryContent


class WebhookDeliveries:
    """The deliveries of all jobs.

    Args:
        client: A connection to the broker that decodes responses.
        ttl: How long they are kept.
    """

    def __init__(self, client: Redis, ttl: timedelta) -> None:
        self._redis, self._ttl_s = client, int(ttl.total_seconds())

    def log(self, job_id: str) -> list[Delivery]:
        """Return a job's deliveries, the newest first; at most 200 besides pending ones."""
        stored = cast("dict[str, str]", self._redis.hgetall(_key(job_id)))
        numbers = sorted((int(name) for name in stored if name.isdigit()), reverse=True)
        log = []
        for number in numbers:
            try:
                content = _parsed(stored[str(number)], number)
            except ValidationError as error:
                problem = type(error).__name__  # its message has the delivery's text
                logger.warning("skipped delivery %d: %s", number, problem, extra={"job": job_id})
            else:
                log.append(Delivery.model_validate(content.model_dump()))
        return log

    def due_tenants(self, now: float) -> list[str]:
        """Return the tenants with deliveries that are due, the longest wait first."""
        tenants = self._redis.zrangebyscore(WEBHOOK_TENANTS, "-inf", now, start=0, num=_MAX_TENANTS)
        return cast("list[str]", tenants)

    def claim(self, tenant: str, now: float, claimed_until: float) -> ClaimedDelivery | None:
        """Claim a tenant's first delivery that is due; None if there is none.

        If nothing is recorded of it until the claim ends, it is due again.
        """
        claimed = scripts.claim_delivery(
            self._redis, tenant=tenant, now=now, claimed_until=claimed_until
        )
        if not claimed:
            return None
        job_id, sequence, text, webhook = claimed
        return ClaimedDelivery(
            tenant,
            job_id,
            JobWebhook.model_validate_json(webhook),
            _parsed(text, int(sequence)),
        )

    def record(
        self,
        claimed: ClaimedDelivery,
        status: Literal["pending", "delivered", "exhausted"],
        reason: str,
        *,
        now: float,
        due_at: float | None = None,
        is_gone: bool = False,
    ) -> None:
        """Record how an attempt ended.

        Args:
            claimed: The delivery.
            status: Its status now.
            reason: How it ended, in a few words.
            now: The broker's time.
            due_at: When the next attempt is due, if it is pending.
            is_gone: The receiver wants no more of this job.
        """
        scripts.record_delivery(
            self._redis,
            deliveries_key=_key(claimed.job_id),
            tenant=claimed.tenant,
            job_id=claimed.job_id,
            sequence=claimed.delivery.sequence,
            now=now,
            status=status,
            reason=reason,
            due_at=due_at,
            is_gone=is_gone,
        )

    def redeliver(self, job_id: str, tenant: str, sequence: int | None, now: float) -> list[int]:
        """Make a delivery due now, with all attempts again; None is every exhausted one.

        Returns:
            Their numbers.

        Raises:
            InvalidStateError: The job has no such delivery.
        """
        chosen = scripts.redeliver(
            self._redis,
            deliveries_key=_key(job_id),
            ttl_s=self._ttl_s,
            tenant=tenant,
            job_id=job_id,
            sequence=sequence,
            now=now,
        )
        if sequence is not None and not chosen:
            raise InvalidStateError(job_id, f"without a delivery {sequence}")
        return sorted(chosen)


def _key(job_id: str) -> str:
    return f"{record_key(job_id)}{DELIVERIES_SUFFIX}"


def _parsed(text: str, sequence: int) -> DeliveryContent:
    content = DeliveryContent.model_validate_json(text)
    return content.model_copy(update={"sequence": sequence})
