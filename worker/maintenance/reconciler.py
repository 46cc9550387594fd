"""The reconciler: sends the next stage of jobs whose message was lost, and lost caption runs.

The job's record is the truth; messages only carry work to workers. A message can be lost between
two of kombu's steps, when a worker dies after it popped the message and before it recorded it as
unacknowledged, or never be sent, when the broker is unavailable as a stage ends. The reconciler
compares the jobs in flight with the messages in the broker. If a stage has had no message for a
while, it is sent again with the rest of its chain, under the result id that its sender waits for.
"""

import json
import logging
import time
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, cast

from celery import Celery
from redis import Redis

from routing.queues import ALL_QUEUES
from tasks.captions.message import send_run
from tasks.captions.runs import CaptionRuns
from tasks.clock import broker_time
from tasks.contract import SUBMIT
from tasks.stages.messages import MAX_MESSAGE_BYTES, SUBMIT_QUEUES, read_message
from tasks.state.control import JobControl
from tasks.state.keys import MISSING_MESSAGES
from tasks.state.stage_message import send_waiting
from worker.kombu_redis.scan import (
    MAX_STAGE_BYTES,
    StoredMessage,
    held_messages,
    queued_messages,
)
from worker.kombu_redis.transport import Keys
from worker.kombu_redis.unreadable import UnreadableMessages

logger = logging.getLogger(__name__)

# Bounds the memory of one round; a larger number takes several.
_MAX_UNREADABLE = 100


class Reconciler:
    """Compares jobs with messages, and sends what is missing.

    Args:
        client: A connection to the broker that decodes responses.
        control: The jobs.
        patience: How long a message must be missing: longer than any of kombu's steps takes.
        keys: The keys of kombu's messages.
        unreadable: Where unreadable messages go.
        app: Sends caption runs.
    """

    def __init__(
        self,
        client: Redis,
        control: JobControl,
        patience: timedelta,
        keys: Keys,
        unreadable: UnreadableMessages,
        app: Celery,
    ) -> None:
        self._redis = client
        self._control = control
        self._patience_s = patience.total_seconds()
        self._keys = keys
        self._unreadable = unreadable
        self._app = app
        self._next_at = 0.0

    def reconcile_if_due(self) -> list[str]:
        """Reconcile if the last time was at least half of the patience ago."""
        if time.monotonic() < self._next_at:
            return []
        self._next_at = time.monotonic() + self._patience_s / 2
        return self.reconcile()

    def reconcile(self) -> list[str]:
        """Look for the message of every job in flight, and of every caption run.

        Returns:
            The ids of the jobs that were sent again.
        """
        self._unreadable.drop_other_types(
            [key for queue in ALL_QUEUES for key in self._keys.lists(queue)]
        )
        jobs = self._control.summaries_in_flight()
        # Read after the jobs: a message for their current state was sent before, or not at all.
        found = scan_messages(self._redis, self._keys)
        with_message = found.stages
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
                send_waiting(self._redis, job)
                sent.append(job.id)
        self._remember(missing)
        self._send_captions(found.caption_runs)
        # The last one first: the places of the others stay the same.
        for message, reason in reversed(found.unreadable):
            self._unreadable.add(message.text, message.queue, reason, message.place)
        return sent

    def send_retries(self) -> list[str]:
        """Send the jobs whose retry is due.

        Returns:
            Their ids.
        """
        due = self._control.take_due()
        for job in due:
            send_waiting(self._redis, job)
        return [job.id for job in due]

    def _send_captions(self, sent: set[str]) -> None:
        for run in CaptionRuns(self._redis).without_message(sent, self._patience_s):
            logger.warning("sent again: the message was lost", extra={"job": run.id})
            send_run(self._app, run)

    def _remember(self, missing: dict[str, str]) -> None:
        with self._redis.pipeline() as pipe:
            pipe.delete(MISSING_MESSAGES)
            if missing:
                pipe.hset(MISSING_MESSAGES, mapping=cast("dict[Any, Any]", missing))
                pipe.expire(MISSING_MESSAGES, int(self._patience_s * 10) + 1)
            pipe.execute()


@dataclass(frozen=True)
class FoundMessages:
    """The messages of the broker.

    Attributes:
        stages: The job and the stage of each message, in a queue or held by a worker.
        caption_runs: The caption runs that messages start.
        unreadable: Messages in queues that are unreadable, and why; at most a hundred.
    """

    stages: set[tuple[str, str]]
    caption_runs: set[str]
    unreadable: list[tuple[StoredMessage, str]]


def scan_messages(client: Redis, keys: Keys) -> FoundMessages:
    """Read all messages, in bounded memory.

    Args:
        client: A connection to the broker that decodes responses.
        keys: The keys of kombu's messages.
    """
    found = FoundMessages(set(), set(), [])
    for queue in ALL_QUEUES:
        for message in queued_messages(client, keys, queue, MAX_STAGE_BYTES):
            try:
                _add_queued(found, message)
            except ValueError as error:
                if len(found.unreadable) < _MAX_UNREADABLE:
                    found.unreadable.append((message, str(error)))
    for entry in held_messages(client, keys):
        with suppress(Exception):  # redelivery sets aside what its worker does not renew
            message, _, queue = json.loads(entry.text)
            _add(found, json.dumps(message), queue)
    return found


def _add_queued(found: FoundMessages, message: StoredMessage) -> None:
    if message.queue in SUBMIT_QUEUES and _is_submission(message.text):
        return  # its worker checks the rest, which takes twenty times longer: a backlog may be long
    if message.is_whole:
        _add(found, message.text, message.queue)
    elif message.queue not in SUBMIT_QUEUES or message.place.size > MAX_MESSAGE_BYTES:
        raise ValueError("is too large")


def _is_submission(text: bytes) -> bool:
    with suppress(ValueError, RecursionError, LookupError, TypeError):
        return bool(json.loads(text)["headers"]["task"] == SUBMIT)
    return False


def _add(found: FoundMessages, text: bytes | str, queue: str) -> None:
    message = read_message(text, queue)
    if message.job_id is not None and message.stage is not None:
        found.stages.add((message.job_id, message.stage))
    if message.caption_run is not None:
        found.caption_runs.add(message.caption_run)
