"""How a fleet stands now, for those who watch it: what waits, what runs, who is there.

Reads little, however many jobs there are: the lanes by their lengths, and the few jobs in flight by
a few fields each.
"""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from redis import Redis

from routing.queues import ALL_QUEUES
from tasks.metrics import UNREAD
from tasks.state.job_store import keys_of
from tasks.state.keys import (
    DEAD_LETTERS,
    DUE,
    IN_FLIGHT,
    PENDING_WEBHOOKS,
    tenant_queue_key,
    tenant_since_key,
    tenants_key,
)
from tasks.state.record import NEXT_QUEUE, waiting_queue
from tasks.state.workers import WorkerInfo, live_workers

_FIELDS = ("status", "stage", "stage_state", "gpu_queue", "tenant", "updated_at")
Place = tuple[str, str]
"""A queue and a tenant."""


@dataclass(frozen=True)
class Running:
    """A stage that runs."""

    queue: str
    worker: str


@dataclass(frozen=True)
class FleetSnapshot:
    """How a fleet stands.

    Attributes:
        waiting: Jobs that wait, in lanes and in queues.
        since: Since when the oldest of them waits, in seconds since the epoch.
        now: The broker's clock.
        running: The stages that run.
        in_flight: Jobs that have a message, or whose stage runs.
        due: Jobs that wait out a fault.
        dead: Jobs that failed through no fault of their own.
        untold: Jobs whose end is to be told by webhook.
        workers: Those that are there, by name.
    """

    waiting: Mapping[Place, int]
    since: Mapping[Place, float]
    now: float
    running: list[Running]
    in_flight: int
    due: int
    dead: int
    untold: int
    workers: Mapping[str, WorkerInfo]

    def waits_s(self, place: Place) -> float:
        """How long the oldest job there waits."""
        return max(0.0, self.now - self.since.get(place, self.now))


def standing(client: Redis) -> FleetSnapshot:
    """How the fleet stands now.

    Args:
        client: A connection to the broker that decodes responses.
    """
    with client.pipeline(transaction=False) as pipe:
        pipe.time()
        pipe.hkeys(IN_FLIGHT)
        for index in (DUE, DEAD_LETTERS, PENDING_WEBHOOKS):
            pipe.zcard(index)
        for queue in ALL_QUEUES:
            pipe.llen(queue)
            pipe.zrange(tenants_key(queue), 0, -1)
        (seconds, micros), job_ids, due, dead, untold, *queues = cast("Any", pipe.execute())
    lengths = dict(zip(ALL_QUEUES, queues[::2], strict=True))
    lanes = [(q, t) for q, tenants in zip(ALL_QUEUES, queues[1::2], strict=True) for t in tenants]
    waiting, since = _in_lanes(client, lanes)
    running = _in_flight(client, job_ids, lengths, waiting, since)
    return FleetSnapshot(
        waiting=waiting,
        since=since,
        now=seconds + micros / 1e6,
        running=running,
        in_flight=len(job_ids),
        due=due,
        dead=dead,
        untold=untold,
        workers=live_workers(client),
    )


def _in_lanes(client: Redis, lanes: list[Place]) -> tuple[Counter[Place], dict[Place, float]]:
    with client.pipeline(transaction=False) as pipe:
        for queue, tenant in lanes:
            pipe.zcard(tenant_queue_key(queue, tenant))
            pipe.zrange(tenant_since_key(queue, tenant), 0, 0, withscores=True)
        answers = pipe.execute()
    waiting = Counter(dict(zip(lanes, answers[::2], strict=True)))
    firsts = zip(lanes, answers[1::2], strict=True)
    return waiting, {place: first[0][1] for place, first in firsts if first}


def _in_flight(
    client: Redis,
    job_ids: list[str],
    lengths: Mapping[str, int],
    waiting: Counter[Place],
    since: dict[Place, float],
) -> list[Running]:
    """Add the jobs that wait in queues; those that run are what it gives."""
    running: list[Running] = []
    in_queues: Counter[str] = Counter()
    for fields in _fields_of(client, job_ids):
        if fields["stage_state"] == "running":
            start = json.loads(fields[f"stage:{fields['stage']}"])
            running.append(Running(start["queue"], start["worker"]))
            continue
        queue = waiting_queue(fields)
        if queue is not None:
            place = (queue, fields["tenant"])
            in_queues[queue] += 1
            waiting[place] += 1
            since[place] = min(since.get(place, float("inf")), float(fields["updated_at"]))
    for queue, length in lengths.items():
        # What is in a queue and is no job's stage: jobs that a backend sent.
        if length > in_queues[queue]:
            waiting[queue, UNREAD] += length - in_queues[queue]
    return running


def _fields_of(client: Redis, job_ids: list[str]) -> list[dict[str, str]]:
    names = [*_FIELDS, f"ref:{NEXT_QUEUE}"]
    with client.pipeline(transaction=False) as pipe:
        for job_id in job_ids:
            pipe.hmget(keys_of(job_id)[0], names)
        found = [dict(zip(names, values, strict=True)) for values in pipe.execute()]
        there = [
            (job_id, {name: value for name, value in fields.items() if value is not None})
            for job_id, fields in zip(job_ids, found, strict=True)
            if fields["status"] is not None
        ]
        for job_id, fields in there:
            pipe.hget(keys_of(job_id)[0], f"stage:{fields['stage']}")
        for (_, fields), start in zip(there, pipe.execute(), strict=True):
            if start is not None:
                fields[f"stage:{fields['stage']}"] = start
    return [fields for _, fields in there]
