"""The reconciler: sends the next stage of jobs whose message was lost.

The job's record is the truth; messages only carry work to workers. A message can be lost between
two of kombu's steps, when a worker dies after it popped the message and before it recorded it as
unacknowledged, or never be sent, when the broker is unavailable as a stage ends. The reconciler
compares the jobs in flight with the messages in the broker. If a stage has had no message for a
while, it is sent again with the rest of its chain, under the result id that its sender waits for.
"""

import base64
import json
import logging
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any, cast

from redis import Redis

from routing.queues import ALL_QUEUES
from tasks.clock import broker_time
from tasks.contract import STAGES, task_name
from tasks.state.control import JobControl
from tasks.state.keys import MISSING_MESSAGES
from tasks.state.record import JobSummary
from worker.kombu_redis.transport import Keys

logger = logging.getLogger(__name__)

_STAGE_OF = {task_name(stage): stage for stage in STAGES}


class Reconciler:
    """Compares jobs with messages, and sends what is missing.

    Args:
        client: A connection to the broker that decodes responses.
        control: The jobs.
        send: Sends a job's chain from the stage that its record says is next.
        patience: How long a message must be missing: longer than any of kombu's steps takes.
        keys: The keys of kombu's messages.
    """

    def __init__(
        self,
        client: Redis,
        control: JobControl,
        send: Callable[[JobSummary], None],
        patience: timedelta,
        keys: Keys,
    ) -> None:
        self._redis = client
        self._control = control
        self._send = send
        self._patience_s = patience.total_seconds()
        self._keys = keys
        self._next_at = 0.0

    def reconcile_if_due(self) -> list[str]:
        """Reconcile if the last time was at least half of the patience ago."""
        if time.monotonic() < self._next_at:
            return []
        self._next_at = time.monotonic() + self._patience_s / 2
        return self.reconcile()

    def reconcile(self) -> list[str]:
        """Look for the message of every job in flight.

        Returns:
            The ids of the jobs that were sent again.
        """
        jobs = self._control.summaries_in_flight()
        # Read after the jobs: a message for their current state was sent before, or not at all.
        with_message = set(messages(self._redis, self._keys))
        known = cast("dict[str, str]", self._redis.hgetall(MISSING_MESSAGES))
        now = broker_time(self._redis)
        missing: dict[str, str] = {}
        sent = []
        for job in jobs:
            if (job.id, job.stage) in with_message:
                continue
            state = f"{job.stage} {job.attempt} {job.pending_queue}"
            known_state, _, since = known.get(job.id, "").rpartition(" ")
            since_s = float(since) if known_state == state else now
            if now - since_s < self._patience_s:
                missing[job.id] = f"{state} {since_s}"
            elif self._control.requeue(job.id, job.attempt, job.stage):
                logger.warning("sent again: the message was lost", extra={"job": job.id})
                self._send(job)
                sent.append(job.id)
        self._remember(missing)
        return sent

    def send_retries(self) -> list[str]:
        """Send the jobs whose retry is due.

        Returns:
            Their ids.
        """
        due = self._control.take_due()
        for job in due:
            self._send(job)
        return [job.id for job in due]

    def _remember(self, missing: dict[str, str]) -> None:
        with self._redis.pipeline() as pipe:
            pipe.delete(MISSING_MESSAGES)
            if missing:
                pipe.hset(MISSING_MESSAGES, mapping=cast("dict[Any, Any]", missing))
                pipe.expire(MISSING_MESSAGES, int(self._patience_s * 10) + 1)
            pipe.execute()


def messages(client: Redis, keys: Keys) -> Iterator[tuple[str, str]]:
    """Yield the job and the stage of every message, in a queue or held by a worker.

    Args:
        client: A connection to the broker that decodes responses.
        keys: The keys of kombu's messages.
    """
    for queue in ALL_QUEUES:
        for key in keys.lists(queue):
            for text in cast("list[str]", client.lrange(key, 0, -1)):
                yield from _job_of(json.loads(text))
    for text in cast("list[str]", client.hvals(keys.unacked)):
        yield from _job_of(json.loads(text)[0])


def _job_of(message: dict[str, Any]) -> Iterator[tuple[str, str]]:
    stage = _STAGE_OF.get(message["headers"].get("task", ""))
    if stage is not None:
        arguments, _, _ = json.loads(base64.b64decode(message["body"]))
        yield arguments[0], stage
