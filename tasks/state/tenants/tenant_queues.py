"""Tenant queues: jobs wait in front of a queue until their tenant's share lets them in.

``routing/fair_share.py`` picks the tenant; a script takes its job out and sends it, once and only
if the queue has room. Any process may dispatch.
"""

import json
import logging
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from datetime import timedelta
from typing import Any, cast

from redis import Redis, RedisError, ResponseError

from routing.fair_share import ROOM, TenantShare, TenantShares, next_tenant
from tasks.clock import broker_time
from tasks.errors import JobError
from tasks.state import scripts
from tasks.state.job_reader import execute_readable
from tasks.state.job_store import DispatchOutcome
from tasks.state.keys import (
    FLEET,
    IN_FLIGHT,
    TENANT_QUEUES,
    tenant_queue_key,
    tenant_since_key,
    tenants_key,
)
from tasks.state.record import hash_of, parse_summary
from tasks.state.scripts import Candidates
from tasks.state.stage_message import send_waiting
from tasks.state.workers import WorkerInfo

logger = logging.getLogger(__name__)

# The script's reply about a job that has expired.
_GONE = "gone"


class TenantQueues:
    """Dispatches waiting jobs, and reports what waits.

    Args:
        client: A connection to Redis 6.2 or newer that decodes responses.
        ttl: How long a job is kept after its last change.
    """

    def __init__(self, client: Redis, ttl: timedelta) -> None:
        self._redis = client
        self._ttl_s = int(ttl.total_seconds())

    def dispatch(self, candidates: Candidates | None = None) -> list[str]:
        """Send waiting jobs while their queues have room; never fails.

        Args:
            candidates: What a script has returned of them; None asks.

        Returns:
            The ids of the jobs that were sent.
        """
        sent: list[str] = []
        try:
            if candidates is None:
                candidates = scripts.dispatch_candidates(self._redis)
            while candidates:
                candidates = self._send_one(candidates, sent)
        except (RedisError, JobError) as error:
            logger.warning("cannot dispatch jobs: %s", error)  # the next caller retries
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
        return shares_in(cast("dict[str, str]", self._redis.hgetall(FLEET)))

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
                counts = [count or 0 for count in execute_readable(pipe)]
                waiting[queue] = dict(zip(tenants, counts, strict=True))
        return waiting

    def oldest_waits_s(self, tenant: str | None = None) -> dict[str, float]:
        """Return how long the oldest job has waited in a tenant queue, by queue.

        Args:
            tenant: Whose jobs; None is all tenants.
        """
        places = [
            (queue, name)
            for queue, tenants in self.waiting().items()
            for name in tenants
            if tenant in (None, name)
        ]
        with self._redis.pipeline(transaction=False) as pipe:
            for queue, name in places:
                pipe.zrange(tenant_since_key(queue, name), 0, 0, withscores=True)
            replies = cast("list[list[tuple[str, float]] | None]", execute_readable(pipe))
        now, waits = broker_time(self._redis), dict[str, float]()
        for (queue, _), entries in zip(places, replies, strict=True):
            for _, since in entries or ():
                waits[queue] = max(waits.get(queue, 0.0), now - since)
        return waits

    def _send_one(self, candidates: Candidates, sent: list[str]) -> Candidates:
        """Send the next job and add its id to ``sent``; return the next candidates, if any."""
        queues, tenants_in_flight, fleet = candidates
        in_flight: Counter[str] = Counter(tenants_in_flight)
        shares = shares_in(hash_of(fleet))
        for queue, waiting in sorted(queues):
            outcome, *reply = self._send_one_of(queue, waiting, in_flight, shares)
            if outcome == DispatchOutcome.SENT:
                job_id, fields, candidates = reply
                if fields:
                    send_waiting(self._redis, parse_summary(job_id, hash_of(json.loads(fields))))
                sent.append(job_id)
                return candidates
            if outcome == _GONE:  # its tenant queue has changed: ask again
                return scripts.dispatch_candidates(self._redis)
        return []

    def _send_one_of(
        self,
        queue: str,
        waiting: Collection[str],
        in_flight: Counter[str],
        shares: TenantShares,
    ) -> list[Any]:
        """Send the next job of a queue; return the script's reply.

        A tenant whose jobs cannot be read delays no other.
        """
        tenants = list(waiting)
        while (tenant := next_tenant(tenants, in_flight, shares)) is not None:
            try:
                return scripts.dispatch_job(
                    self._redis,
                    tenant_queue=tenant_queue_key(queue, tenant),
                    ttl_s=self._ttl_s,
                    queue=queue,
                    tenant=tenant,
                )
            except ResponseError as error:
                logger.warning("cannot dispatch a job of %s for %s: %s", tenant, queue, error)
                tenants.remove(tenant)
        return [DispatchOutcome.WAITING]


def shares_in(fleet: Mapping[str, str]) -> dict[str, TenantShare]:
    """Return the tenants' shares in the hash that ``publish_fleet`` writes."""
    limits = {
        field.removeprefix("limit:"): value
        for field, value in fleet.items()
        if field.startswith("limit:")
    }
    return {
        tenant: TenantShare(float(fleet[f"weight:{tenant}"]), int(limit) if limit else None)
        for tenant, limit in limits.items()
    }
