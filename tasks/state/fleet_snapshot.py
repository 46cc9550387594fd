"""A snapshot of the fleet for monitoring: what waits, what runs, which workers are live.

The cost does not grow with the number of waiting jobs: it reads the lengths of tenant queues, and a
few fields of each job in flight.
"""

import json
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

from redis import Redis

from routing.fair_share import TenantShares, share_of
from routing.queues import ALL_QUEUES
from tasks.captions.runs import running_captions
from tasks.contract import record_key
from tasks.metrics import UNREAD
from tasks.state.job_reader import execute_readable
from tasks.state.keys import (
    DEAD_LETTERS,
    DUE,
    FLEET,
    IN_FLIGHT,
    PENDING_WEBHOOKS,
    WEBHOOK_TENANTS,
    tenant_queue_key,
    tenant_since_key,
    tenants_key,
)
from tasks.state.record import CACHE_QUEUE_FIELD, pending_queue
from tasks.state.tenants.quotas import Quotas
from tasks.state.tenants.tenant_queues import shares_in
from tasks.state.workers import WorkerInfo, live_workers

_FIELDS = ("status", "stage", "stage_state", "gpu_queue", "tenant", "updated_at")
Place = tuple[str, str]
"""A queue and a tenant."""


@dataclass(frozen=True)
class Running:
    """A stage that runs, or captions that a worker writes."""

    queue: str
    worker: str
    tenant: str


@dataclass(frozen=True)
class FleetSnapshot:
    """The state of a fleet.

    Attributes:
        waiting: The number of jobs that wait, in tenant queues and in queues.
        since: When the oldest of them began to wait, in seconds since the epoch.
        now: The broker's clock.
        running: The stages and caption runs that workers carry out.
        in_flight: The number of jobs that have a message or whose stage runs.
        due: The number of jobs that wait for a retry.
        dead_letters: The number of jobs in the dead-letter queue.
        pending_webhooks: The number of ended jobs whose webhook is not delivered.
        webhook_tenants: The number of tenants whose jobs' own webhooks are not all delivered.
        workers: The live workers by name.
        shares: The tenants' shares.
        held: The tenants whose waiting jobs a monthly quota holds.
    """

    waiting: Mapping[Place, int]
    since: Mapping[Place, float]
    now: float
    running: list[Running]
    in_flight: int
    due: int
    dead_letters: int
    pending_webhooks: int
    webhook_tenants: int
    workers: Mapping[str, WorkerInfo]
    shares: TenantShares
    held: Collection[str]

    def workers_wanted(self) -> dict[str, int]:
        """Return by queue how many workers would have work: an autoscaler starts that many.

        A tenant's jobs beyond its limit wait for its other jobs, and those that a quota holds wait
        for the next month: no worker helps them.
        """
        running = Counter(stage.tenant for stage in self.running)
        wanted = Counter(stage.queue for stage in self.running)
        for (queue, tenant), count in self.waiting.items():
            limit = 0 if tenant in self.held else share_of(tenant, self.shares).limit
            admitted = count if limit is None else min(count, max(0, limit - running[tenant]))
            wanted[queue] += admitted
        return {queue: wanted[queue] for queue in ALL_QUEUES}

    def waits_s(self, place: Place) -> float:
        """Return how long the oldest job of a place has waited."""
        return max(0.0, self.now - self.since.get(place, self.now))


class QueueLengths(NamedTuple):
    """What waits in the queues and in the tenant queues in front of them.

    Attributes:
        messages: The number of messages in each queue.
        waiting: The number of jobs in each tenant queue.
        since: When the oldest of them began to wait, in seconds since the epoch.
    """

    messages: dict[str, int]
    waiting: Counter[Place]
    since: dict[Place, float]


def read_fleet(client: Redis) -> FleetSnapshot:
    """Read the state of the fleet.

    Args:
        client: A connection to the broker that decodes responses.
    """
    with client.pipeline(transaction=False) as pipe:
        pipe.time()
        pipe.hkeys(IN_FLIGHT)
        pipe.hgetall(FLEET)
        for index in (DUE, DEAD_LETTERS, PENDING_WEBHOOKS, WEBHOOK_TENANTS):
            pipe.zcard(index)
        (seconds, micros), job_ids, published, *sizes = cast("Any", pipe.execute())
    due, dead, webhooks, webhook_tenants = sizes
    lengths, waiting, since = read_queue_lengths(client)
    running = _in_flight(client, job_ids, lengths, waiting, since)
    running += [Running(it.queue, it.worker, it.tenant) for it in running_captions(client)]
    return FleetSnapshot(
        waiting=waiting,
        since=since,
        now=seconds + micros / 1e6,
        running=running,
        in_flight=len(job_ids),
        due=due,
        dead_letters=dead,
        pending_webhooks=webhooks,
        webhook_tenants=webhook_tenants,
        workers=live_workers(client),
        shares=shares_in(published),
        held=Quotas(client).held_tenants(),
    )


def read_queue_lengths(client: Redis) -> QueueLengths:
    """Read what waits, without reading any job."""
    with client.pipeline(transaction=False) as pipe:
        for queue in ALL_QUEUES:
            pipe.llen(queue)
            pipe.zrange(tenants_key(queue), 0, -1)
        replies = pipe.execute()
    tenants = zip(ALL_QUEUES, replies[1::2], strict=True)
    places = [(queue, tenant) for queue, names in tenants for tenant in names]
    messages = dict(zip(ALL_QUEUES, replies[::2], strict=True))
    return QueueLengths(messages, *_in_tenant_queues(client, places))


def _in_tenant_queues(
    client: Redis, places: list[Place]
) -> tuple[Counter[Place], dict[Place, float]]:
    with client.pipeline(transaction=False) as pipe:
        for queue, tenant in places:
            pipe.zcard(tenant_queue_key(queue, tenant))
            pipe.zrange(tenant_since_key(queue, tenant), 0, 0, withscores=True)
        replies = execute_readable(pipe)
    counts = [count or 0 for count in replies[::2]]
    waiting = Counter(dict(zip(places, counts, strict=True)))
    oldest = zip(places, replies[1::2], strict=True)
    return waiting, {place: entries[0][1] for place, entries in oldest if entries}


def _in_flight(
    client: Redis,
    job_ids: list[str],
    lengths: Mapping[str, int],
    waiting: Counter[Place],
    since: dict[Place, float],
) -> list[Running]:
    """Return the stages that run; add the jobs in queues to ``waiting`` and ``since``."""
    running: list[Running] = []
    in_queues: Counter[str] = Counter()
    for fields in _fields_of(client, job_ids):
        if fields["stage_state"] == "running":
            start = json.loads(fields[f"stage:{fields['stage']}"])
            running.append(Running(start["queue"], start["worker"], fields["tenant"]))
            continue
        queue = pending_queue(fields)
        if queue is not None:
            place = (queue, fields["tenant"])
            in_queues[queue] += 1
            waiting[place] += 1
            since[place] = min(since.get(place, float("inf")), float(fields["updated_at"]))
    for queue, length in lengths.items():
        # Other messages are jobs that a backend sent and no worker has recorded yet.
        if length > in_queues[queue]:
            waiting[queue, UNREAD] += length - in_queues[queue]
    return running


def _fields_of(client: Redis, job_ids: list[str]) -> list[dict[str, str]]:
    """Return the fields that a snapshot needs of each job, with the record of its stage."""
    names = [*_FIELDS, CACHE_QUEUE_FIELD]
    with client.pipeline(transaction=False) as pipe:
        for job_id in job_ids:
            pipe.hmget(record_key(job_id), names)
        read = [values or [None] * len(names) for values in execute_readable(pipe)]
        hashes = [dict(zip(names, values, strict=True)) for values in read]
        existing = [
            (job_id, {name: value for name, value in fields.items() if value is not None})
            for job_id, fields in zip(job_ids, hashes, strict=True)
            if fields["status"] is not None
        ]
        for job_id, fields in existing:
            pipe.hget(record_key(job_id), f"stage:{fields['stage']}")
        for (_, fields), start in zip(existing, pipe.execute(), strict=True):
            if start is not None:
                fields[f"stage:{fields['stage']}"] = start
    return [fields for _, fields in existing]
