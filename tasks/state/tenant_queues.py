"""Lanes: jobs wait in front of the queues for their tenant's turn.

Whose turn it is is decided by ``routing/fair_share.py``; that a job leaves its lane once, and only
where there is room, is seen to by ``tasks/state/scripts.py``. Anybody may let jobs go.
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
from tasks.state.job_store import DispatchOutcome, paired
from tasks.state.keys import (
    FLEET,
    IN_FLIGHT,
    TENANT_QUEUES,
    tenant_queue_key,
    tenants_key,
)
from tasks.state.record import JobRecord, JobSummary, head_of
from tasks.state.workers import WorkerInfo

logger = logging.getLogger(__name__)

# What dispatch_job replies of a job whose life time is over.
_GONE = "gone"


class TenantQueues:
    """Lets waiting jobs go, and tells who waits.

    Args:
        client: A connection to Redis 6.2 or newer that decodes responses.
        ttl: How long a job is kept after its last change.
        send: Sends a job's chain from the stage that its record says it waits for.
    """

    def __init__(
        self, client: Redis, ttl: timedelta, send: Callable[[JobSummary], None] = lambda _: None
    ) -> None:
        self._redis, self._send = client, send
        self._ttl_s = int(ttl.total_seconds())

    def dispatch(self) -> list[str]:
        """Let jobs go for as long as their queues have room; never fails.

        Returns:
            Their ids.
        """
        sent: list[str] = []
        try:
            while (record := self._take_next()) is not None:
                self._send(record)
                sent.append(record.id)
        except (RedisError, OperationalError, JobError) as error:
            # Whoever comes next does it; what was taken and not sent is the reconciler's.
            logger.warning("jobs wait on: %s", error)
        return sent

    def note_fleet(
        self, workers: Iterable[WorkerInfo], terms: TenantShares, life: timedelta
    ) -> None:
        """Note what the live workers have room for, and what tenants get.

        Args:
            workers: Those that take messages.
            terms: What the operator says.
            life: How long the note lasts; without one, no job goes.
        """
        served = {queue for worker in workers for queue in worker.queues}
        fields = {f"room:{queue}": str(ROOM) for queue in served}
        for tenant, its in terms.items():
            fields |= {f"weight:{tenant}": str(its.weight), f"limit:{tenant}": str(its.limit or "")}
        with self._redis.pipeline() as pipe:
            pipe.delete(FLEET)
            if fields:
                pipe.hset(FLEET, mapping=cast("dict[Any, Any]", fields))
                pipe.pexpire(FLEET, life)
            pipe.execute()

    def terms(self) -> dict[str, TenantShare]:
        """What tenants get, as a live worker noted it."""
        return _terms_in(cast("dict[str, str]", self._redis.hgetall(FLEET)))

    def in_flight(self) -> Counter[str]:
        """Tenant to its jobs that have left their lane and are not over."""
        return Counter(cast("list[str]", self._redis.hvals(IN_FLIGHT)))

    def waiting(self) -> dict[str, dict[str, int]]:
        """Queue to tenant to jobs that wait."""
        found: dict[str, dict[str, int]] = {}
        for queue in sorted(cast("set[str]", self._redis.smembers(TENANT_QUEUES))):
            tenants = cast("list[str]", self._redis.zrange(tenants_key(queue), 0, -1))
            with self._redis.pipeline(transaction=False) as pipe:
                for tenant in tenants:
                    pipe.zcard(tenant_queue_key(queue, tenant))
                found[queue] = dict(zip(tenants, pipe.execute(), strict=True))
        return found

    def before(self, record: JobRecord) -> int | None:
        """How many jobs of its tenant go before a job that waits in a lane."""
        lane = tenant_queue_key(record.pending_queue or "", record.job.tenant)
        return cast("int | None", self._redis.zrank(lane, record.id))

    def _take_next(self) -> JobSummary | None:
        """The job that leaves its lane now; None where none does."""
        while candidates := scripts.dispatch_candidates(self._redis):
            queues, tenants, fleet = candidates
            in_flight, terms = Counter(tenants), _terms_in(paired(fleet))
            for queue, waiting in sorted(queues):
                tenant = next_tenant(waiting, in_flight, terms)
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
                    return head_of(job[0], paired(json.loads(job[1])))
                if outcome == _GONE:
                    break
            else:
                return None
        return None


def _terms_in(fleet: Mapping[str, str]) -> dict[str, TenantShare]:
    limits = {k.partition(":")[2]: v for k, v in fleet.items() if k.startswith("limit:")}
    return {
        tenant: TenantShare(float(fleet[f"weight:{tenant}"]), int(limit) if limit else None)
        for tenant, limit in limits.items()
    }
