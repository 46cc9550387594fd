"""Tenant queues: jobs wait in front of a queue until their tenant's share lets them in.

``routing/fair_share.py`` picks the tenant; a script takes its job out, once and only if the queue
has room. Any process may dispatch.
"""

import json
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from datetime import timedelta
from typing import Any, cast

from kombu.exceptions import OperationalError
from redis import Redis, RedisError

from routing.fair_share import ROOM, TenantShare, TenantShares, next_tenant
from tasks.errors import JobError
from tasks.state import scripts
from tasks.state.job_store import DispatchOutcome
from tasks.state.keys import FLEET, IN_FLIGHT, TENANT_QUEUES, tenant_queue_key, tenants_key
from tasks.state.record import JobRecord, JobSummary, hash_of, parse_summary
from tasks.state.workers import WorkerInfo

logger = logging.getLogger(__name__)

# The script's reply about a job that has expired.
_GONE = "gone"


class TenantQueues:
    """Dispatches waiting jobs, and reports what waits.

    Args:
        client: A connection to Redis 6.2 or newer that decodes responses.
        ttl: How long a job is kept after its last change.
        send: Sends a job's chain from the stage that its record says is next.
    """

    def __init__(
        self, client: Redis, ttl: timedelta, send: Callable[[JobSummary], None] = lambda _: None
    ) -> None:
        self._redis, self._send = client, send
        self._ttl_s = int(ttl.total_seconds())

    def dispatch(self) -> list[str]:
        """Send waiting jobs while their queues have room; never fails.

        Returns:
            The ids of the jobs that were sent.
        """
        sent: list[str] = []
        try:
            while (summary := self._take_next()) is not None:
                self._send(summary)
                sent.append(summary.id)
        except (RedisError, OperationalError, JobError) as error:
            # The next caller retries; the reconciler sends a job that was taken and not sent.
            logger.warning("cannot dispatch jobs: %s", error)
        return sent

    def publish_fleet(
        self, workers: Iterable[WorkerInfo], shares: TenantShares, ttl: timedelta
    ) -> None:
        """Publish the room of each served queue and the tenants' shares, which dispatch goes by.

        Args:
            workers: The workers that take messages.
            shares: The shares from the operator's settings.
            ttl: How long both are valid; without them, no job is dispatched.
        """
        served = {queue for worker in workers for queue in worker.queues}
        fields = {f"room:{queue}": str(ROOM) for queue in served}
        for tenant, share in shares.items():
            fields[f"weight:{tenant}"] = str(share.weight)
            fields[f"limit:{tenant}"] = str(share.limit or "")
        with self._redis.pipeline() as pipe:
            pipe.delete(FLEET)
            if fields:
                pipe.hset(FLEET, mapping=cast("dict[Any, Any]", fields))
                pipe.pexpire(FLEET, ttl)
            pipe.execute()

    def shares(self) -> dict[str, TenantShare]:
        """Return the tenants' shares that were published last."""
        return _shares_in(cast("dict[str, str]", self._redis.hgetall(FLEET)))

    def in_flight(self) -> Counter[str]:
        """Return how many jobs each tenant has in flight."""
        return Counter(cast("list[str]", self._redis.hvals(IN_FLIGHT)))

    def waiting(self) -> dict[str, dict[str, int]]:
        """Return how many jobs wait, by queue and tenant."""
        waiting: dict[str, dict[str, int]] = {}
        for queue in sorted(cast("set[str]", self._redis.smembers(TENANT_QUEUES))):
            tenants = cast("list[str]", self._redis.zrange(tenants_key(queue), 0, -1))
            with self._redis.pipeline(transaction=False) as pipe:
                for tenant in tenants:
                    pipe.zcard(tenant_queue_key(queue, tenant))
                waiting[queue] = dict(zip(tenants, pipe.execute(), strict=True))
        return waiting

    def jobs_before(self, record: JobRecord) -> int | None:
        """Return how many jobs of its tenant precede a job; None if it is in no tenant queue."""
        key = tenant_queue_key(record.pending_queue or "", record.job.tenant)
        return cast("int | None", self._redis.zrank(key, record.id))

    def _take_next(self) -> JobSummary | None:
        """Take the next job out of its tenant queue; None if no job may leave."""
        while candidates := scripts.dispatch_candidates(self._redis):
            queues, tenants_in_flight, fleet = candidates
            in_flight, shares = Counter(tenants_in_flight), _shares_in(hash_of(fleet))
            for queue, waiting in sorted(queues):
                tenant = next_tenant(waiting, in_flight, shares)
                if tenant is None:
                    continue
                outcome, *job = scripts.dispatch_job(
                    self._redis,
                    tenant_queue=tenant_queue_key(queue, tenant),
                    ttl_s=self._ttl_s,
                    queue=queue,
                    tenant=tenant,
                )
                if outcome == DispatchOutcome.SENT:
                    return parse_summary(job[0], hash_of(json.loads(job[1])))
                if outcome == _GONE:
                    break  # its tenant queue has changed: ask again
            else:
                return None
        return None


def _shares_in(fleet: Mapping[str, str]) -> dict[str, TenantShare]:
    limits = {
        field.removeprefix("limit:"): value
        for field, value in fleet.items()
        if field.startswith("limit:")
    }
    return {
        tenant: TenantShare(float(fleet[f"weight:{tenant}"]), int(limit) if limit else None)
        for tenant, limit in limits.items()
    }
