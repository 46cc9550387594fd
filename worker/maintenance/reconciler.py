"""The reconciler: a job whose message was lost goes on.

The job's record is the truth, and messages are only how workers hear of it. A message can be lost
between two of kombu's steps (popped by a worker that died before it was noted as unacknowledged),
or never be sent (the broker was away when a stage ended). One worker at a time therefore compares
the jobs that are not over with the messages there are; where a stage has had none for a while, it
is sent anew, with the rest of its chain and under the result id that its sender waits for.
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
        send: Sends a job's chain from the stage that its record says it waits for.
        patience: For how long a message must be missing: longer than any of kombu's steps takes.
        keys: Where kombu keeps its messages.
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
        self._keys = keys
        self._send = send
        self._patience_s = patience.total_seconds()
        self._due_at = 0.0

    def sweep_if_due(self) -> list[str]:
        """Sweep, where the last one was half of the patience ago."""
        if time.monotonic() < self._due_at:
            return []
        self._due_at = time.monotonic() + self._patience_s / 2
        return self.sweep()

    def sweep(self) -> list[str]:
        """Look at every job in flight.

        Returns:
            Those that were sent anew.
        """
        jobs = self._control.summaries_in_flight()
        # After the jobs: what they wait for was sent before, or not at all.
        there = set(messages(self._redis, self._keys))
        missed = cast("dict[str, str]", self._redis.hgetall(MISSING_MESSAGES))
        now, still, sent = time.time(), {}, []
        for job in jobs:
            if (job.id, job.stage) in there:
                continue
            waits_for = f"{job.stage} {job.attempt} {job.pending_queue}"
            known, _, since = missed.get(job.id, "").rpartition(" ")
            since_s = float(since) if known == waits_for else now
            if now - since_s < self._patience_s:
                still[job.id] = f"{waits_for} {since_s}"
            elif self._control.requeue(job.id, job.attempt, job.stage):
                logger.warning("its message was lost; sent anew", extra={"job": job.id})
                self._send(job)
                sent.append(job.id)
        with self._redis.pipeline() as pipe:
            pipe.delete(MISSING_MESSAGES)
            if still:
                pipe.hset(MISSING_MESSAGES, mapping=cast("dict[Any, Any]", still))
                pipe.expire(MISSING_MESSAGES, int(self._patience_s * 10) + 1)
            pipe.execute()
        return sent

    def send_due(self) -> list[str]:
        """Send the jobs that have waited out a fault.

        Returns:
            Their ids.
        """
        due = self._control.take_due()
        for job in due:
            self._send(job)
        return [job.id for job in due]


def messages(client: Redis, keys: Keys) -> Iterator[tuple[str, str]]:
    """Yield the job and the stage of every message: waiting, or held by a worker.

    Args:
        client: A connection to the broker that decodes responses.
        keys: Where kombu keeps its messages.
    """
    for queue in ALL_QUEUES:
        for key in keys.lists(queue):
            for line in cast("list[str]", client.lrange(key, 0, -1)):
                yield from _job_of(json.loads(line))
    for line in cast("list[str]", client.hvals(keys.unacked)):
        yield from _job_of(json.loads(line)[0])


def _job_of(message: dict[str, Any]) -> Iterator[tuple[str, str]]:
    stage = _STAGE_OF.get(message["headers"].get("task", ""))
    if stage is not None:
        arguments, _, _ = json.loads(base64.b64decode(message["body"]))
        yield arguments[0], stage
