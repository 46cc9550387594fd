"""The fleet for those who may read no job: what waits where, which workers serve it, what failed.

Flower's user of the broker reads this much: a job's record may hold signed addresses.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from redis import Redis

from routing.queues import ALL_QUEUES, ENGINE_QUEUES
from tasks.state.fleet_snapshot import read_queue_lengths
from tasks.state.keys import DEAD_LETTERS, DUE, PENDING_WEBHOOKS, UNREADABLE
from tasks.state.workers import WorkerInfo, live_workers

_MAX_DEAD_LETTERS = 100


@dataclass(frozen=True)
class QueueOverview:
    """A queue, with the tenant queues in front of it.

    Attributes:
        name: Its name.
        messages: Messages in the queue itself.
        by_tenant: Jobs in its tenant queues, by tenant.
        oldest_wait_s: Seconds that the oldest of these jobs has waited; None without any.
        workers: Live workers that serve it and are not quarantined.
    """

    name: str
    messages: int
    by_tenant: Mapping[str, int]
    oldest_wait_s: float | None
    workers: int

    @property
    def waiting(self) -> int:
        """All that waits: messages, and jobs in tenant queues."""
        return self.messages + sum(self.by_tenant.values())


@dataclass(frozen=True)
class FleetOverview:
    """The fleet, without any job's record.

    Attributes:
        queues: The queues; those of an extra engine only with a worker or waiting jobs.
        workers: The live workers by name.
        retries: Jobs that wait for a retry.
        dead_letters: The newest jobs of the dead-letter queue, and when they ended.
        dead_letter_count: All jobs of the dead-letter queue.
        pending_webhooks: Webhooks that are not delivered yet.
        unreadable: Messages that were set aside.
    """

    queues: tuple[QueueOverview, ...]
    workers: Mapping[str, WorkerInfo]
    retries: int
    dead_letters: tuple[tuple[str, datetime], ...]
    dead_letter_count: int
    pending_webhooks: int
    unreadable: int


def read_overview(client: Redis) -> FleetOverview:
    """Read the fleet.

    Args:
        client: A connection to the broker that decodes responses.

    Raises:
        redis.RedisError: The broker is unavailable.
    """
    with client.pipeline(transaction=False) as pipe:
        pipe.time()
        pipe.zcard(DUE)
        pipe.zcard(DEAD_LETTERS)
        pipe.zrevrange(DEAD_LETTERS, 0, _MAX_DEAD_LETTERS - 1, withscores=True)
        pipe.zcard(PENDING_WEBHOOKS)
        pipe.llen(UNREADABLE)
        (now, _), due, dead_count, dead, webhooks, unreadable = pipe.execute()
    workers = live_workers(client)
    return FleetOverview(
        queues=_queues(client, workers, now),
        workers=workers,
        retries=due,
        dead_letters=tuple((job_id, datetime.fromtimestamp(at, UTC)) for job_id, at in dead),
        dead_letter_count=dead_count,
        pending_webhooks=webhooks,
        unreadable=unreadable,
    )


def _queues(
    client: Redis, workers: Mapping[str, WorkerInfo], now_s: float
) -> tuple[QueueOverview, ...]:
    lengths = read_queue_lengths(client)
    serving = [q for it in workers.values() if it.quarantined is None for q in it.queues]
    queues = []
    for name in ALL_QUEUES:
        since = [at for (queue, _), at in lengths.since.items() if queue == name]
        queue = QueueOverview(
            name=name,
            messages=lengths.messages[name],
            by_tenant={
                tenant: count for (queue, tenant), count in lengths.waiting.items() if queue == name
            },
            oldest_wait_s=max(0.0, now_s - min(since)) if since else None,
            workers=serving.count(name),
        )
        if name not in ENGINE_QUEUES or queue.workers or queue.waiting:
            queues.append(queue)
    return tuple(queues)
