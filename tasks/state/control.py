"""Changes jobs from outside their stages, for operators and for the fleet's maintenance."""

import json
import logging
from collections.abc import Mapping
from datetime import timedelta
from typing import cast

from redis import Redis, ResponseError

from tasks.contract import events_key, record_key
from tasks.errors import ErrorCode, InvalidStateError, UnknownJobError, cancelled_message
from tasks.events import JobEnded, Note
from tasks.state import keys, scripts
from tasks.state.job_reader import JobReader
from tasks.state.job_store import DispatchOutcome
from tasks.state.record import VERSION, JobRecord, JobStatus, JobSummary, queue_of
from tasks.state.stage_message import waiting_message
from tasks.state.workers import newest_versions

logger = logging.getLogger(__name__)

# Half a second of the maintenance's round with a broker 5 ms away; 18,000 jobs in a quarter of an
# hour.
_RENEWED_AT_ONCE = 100
# How many messages of a stage may be set aside because their workers died before it began.
_MAX_UNSTARTED = 3


class JobControl:
    """Changes jobs from outside their stages; a running stage notices within a second.

    Args:
        client: A connection to Redis 6.2 or newer that decodes responses.
        ttl: How long a job is kept after its last change.
        unacked_index: The key of kombu's index of the messages that workers hold.
    """

    def __init__(
        self, client: Redis, ttl: timedelta, *, unacked_index: str = keys.UNACKED_INDEX
    ) -> None:
        self._redis = client
        self._ttl_s = int(ttl.total_seconds())
        self._jobs = JobReader(client)
        self._unacked_index = unacked_index

    def cancel(self, job_id: str, *, save: bool = False) -> JobStatus:
        """Cancel a job: at once while it waits, within a step while it runs.

        Args:
            job_id: The job.
            save: Publish the last checkpoint; a running trainer saves one first.

        Returns:
            Its status now; an ended job keeps its own. If it is CANCELLING and no stage runs, the
            caller sends ``publish``.

        Raises:
            UnknownJobError: There is no such job.
        """
        message = cancelled_message(job_id)
        ended = JobEnded(status="cancelled", message=message, code=ErrorCode.CANCELLED)
        status = scripts.cancel_job(
            self._redis,
            job_key=record_key(job_id),
            events_key=events_key(job_id),
            ttl_s=self._ttl_s,
            event=ended.model_dump_json(),
            message=message,
            save_on_cancel=save,
        )
        return JobStatus(_known(job_id, status))

    def pause(self, job_id: str) -> JobStatus:
        """Pause a job: at once while it waits, from a checkpoint while it runs.

        Returns:
            Its status now: PAUSED, or PAUSING until its trainer has saved a checkpoint.

        Raises:
            UnknownJobError: There is no such job.
            InvalidStateError: It has ended, or is being cancelled.
        """
        note = Note(level="info", message="the job was paused")
        reply = scripts.pause_job(
            self._redis,
            job_key=record_key(job_id),
            events_key=events_key(job_id),
            ttl_s=self._ttl_s,
            event=note.model_dump_json(),
        )
        status = JobStatus(_known(job_id, reply))
        if status not in (JobStatus.PAUSING, JobStatus.PAUSED):
            raise InvalidStateError(job_id, f"{status}, not waiting or running")
        return status

    def resume(self, job_id: str) -> bool:
        """Resume a paused job.

        Returns:
            Whether its message was sent; False if the job had not stopped yet, or waits in its
            tenant queue.

        Raises:
            UnknownJobError: There is no such job.
            InvalidStateError: It is not paused.
        """
        return self._reopen(job_id, JobStatus.PAUSED, "the job was resumed")

    def replay(self, job_id: str) -> bool:
        """Resume a failed job from the stage and the checkpoint it had.

        Returns:
            Whether its message was sent; False if the job waits in its tenant queue.

        Raises:
            UnknownJobError: There is no such job.
            InvalidStateError: It has not failed.
        """
        return self._reopen(job_id, JobStatus.FAILED, "the job was replayed")

    def prioritize(self, job_id: str, priority: int | None) -> bool:
        """Change the priority of a job that waits, among the jobs of its tenant.

        Args:
            job_id: The job.
            priority: 0 to 9; None moves the job in front of all of them.

        Returns:
            Whether it waits now; False if it counts when the job waits for its GPU, or again.

        Raises:
            UnknownJobError: There is no such job.
            InvalidStateError: It has ended, or was dispatched and waits no more.
        """
        change = "was moved to the front" if priority is None else f"got priority {priority}"
        note = Note(level="info", message=f"the job {change}")
        reply = scripts.prioritize_job(
            self._redis,
            job_key=record_key(job_id),
            events_key=events_key(job_id),
            ttl_s=self._ttl_s,
            priority=priority or 0,
            is_to_front=priority is None,
            event=note.model_dump_json(),
        )
        if _known(job_id, reply) == "sent":
            raise InvalidStateError(job_id, "dispatched already; its priority counts no more")
        if reply not in ("waiting", "later"):
            raise InvalidStateError(job_id, f"{reply}, not waiting")
        return reply == "waiting"

    def edit(
        self,
        job_id: str,
        *,
        title: str | None = None,
        notes: str | None = None,
        labels: Mapping[str, str] | None = None,
    ) -> None:
        """Change what people call a job; its id and published files keep their names.

        Args:
            job_id: The job.
            title: Its title; empty for none, None leaves it.
            notes: What people write about it; empty for none, None leaves them.
            labels: All of its labels; None leaves them.

        Raises:
            UnknownJobError: There is no such job.
        """
        text = None if labels is None else json.dumps(dict(labels))
        fields = {"title": title, "notes": notes, "labels": text}
        is_known = scripts.edit_job(
            self._redis,
            job_key=record_key(job_id),
            events_key=events_key(job_id),
            ttl_s=self._ttl_s,
            fields={name: value for name, value in fields.items() if value is not None},
        )
        if not is_known:
            raise UnknownJobError(job_id)

    def dead_letters(self) -> list[JobRecord]:
        """Return the jobs of the dead-letter queue, the oldest end first."""
        ids = cast("list[str]", self._redis.zrange(keys.DEAD_LETTERS, 0, -1))
        return self._jobs.get_all(ids)

    def discard(self, job_id: str) -> None:
        """Remove a job from the dead-letter queue.

        Raises:
            InvalidStateError: It is not there.
        """
        if not self._redis.zrem(keys.DEAD_LETTERS, job_id):
            raise InvalidStateError(job_id, "not in the dead-letter queue")

    def in_flight(self) -> list[JobRecord]:
        """Return the jobs that have a message, or should have one, and those whose stage runs."""
        return self._jobs.get_all(self._ids_in_flight())

    def summaries_in_flight(self) -> list[JobSummary]:
        """Return what every version can read of the jobs in flight."""
        return self._jobs.summaries(self._ids_in_flight())

    def requeue(self, job_id: str, attempt: int, stage: str) -> bool:
        """Let a stage whose message was lost begin again; fail it if its messages kill workers.

        Returns:
            Whether the caller sends its message; False if the job has continued or failed.
        """
        note = Note(level="warning", message=f"the message of {stage} was lost; it is sent again")
        message = f"every worker that took the message of {stage} died before it began"
        exhausted = JobEnded(status="failed", message=message, code=ErrorCode.INTERNAL)
        outcome = scripts.requeue_stage(
            self._redis,
            job_key=record_key(job_id),
            events_key=events_key(job_id),
            unacked_index=self._unacked_index,
            ttl_s=self._ttl_s,
            attempt=attempt,
            stage=stage,
            event=note.model_dump_json(),
            max_unstarted=_MAX_UNSTARTED,
            exhausted_event=exhausted.model_dump_json(),
            exhausted_message=message,
        )
        return outcome == "requeued"

    def renew_keys(self) -> int:
        """Renew the keys of jobs that have not ended; remove expired jobs from the lists.

        Each call takes up to a page of the jobs whose keys have lived for a quarter of their time.

        Returns:
            The number of jobs that were looked at.
        """
        seconds, micros = self._redis.time()
        due = self._redis.zrangebyscore(
            keys.RENEWALS, "-inf", seconds + micros / 1e6, start=0, num=_RENEWED_AT_ONCE
        )
        for entry in cast("list[str]", due):
            self._renew(entry)
        return len(cast("list[str]", due))

    def take_due(self) -> list[JobSummary]:
        """Return the jobs whose retry is due; each is returned once, for the caller to send.

        Jobs that need a newer version than any live worker of their queue has keep waiting.
        """
        now = self._redis.time()[0]
        due = cast("list[str]", self._redis.zrangebyscore(keys.DUE, "-inf", now))
        if not due:
            return []
        summaries = {summary.id: summary for summary in self._jobs.summaries(due)}
        versions = newest_versions(self._redis)
        taken = []
        for job_id in due:
            summary = summaries.get(job_id)
            if summary is None:
                # An unreadable job keeps waiting; taking an unknown one removes it from the index.
                if not self._jobs.existing([job_id]):
                    self._take_due(job_id)
                continue
            # The caller is a worker of this version.
            newest = max(VERSION, versions.get(summary.pending_queue or "", 0))
            if summary.version <= newest and self._take_due(job_id):
                taken.append(summary)
        return taken

    def _renew(self, entry: str) -> None:
        job_id, _, tenant = entry.partition(" ")
        try:
            scripts.renew_job(
                self._redis,
                job_key=record_key(job_id),
                events_key=events_key(job_id),
                ttl_s=self._ttl_s,
                entry=entry,
                tenant=tenant,
            )
        except ResponseError as error:
            # The script removes each entry first: an unreadable one does not come back.
            logger.warning("cannot renew %r: %s", entry, error)

    def _take_due(self, job_id: str) -> bool:
        is_taken = scripts.take_due_job(
            self._redis,
            job_key=record_key(job_id),
            events_key=events_key(job_id),
            ttl_s=self._ttl_s,
        )
        return bool(is_taken)

    def _ids_in_flight(self) -> list[str]:
        """Return the ids of the jobs in flight, and remove expired ones."""
        ids = sorted(cast("list[str]", self._redis.hkeys(keys.IN_FLIGHT)))
        existing = self._jobs.existing(ids)
        expired = set(ids) - existing
        if expired:
            self._redis.hdel(keys.IN_FLIGHT, *expired)
        return [job_id for job_id in ids if job_id in existing]

    def _reopen(self, job_id: str, status: JobStatus, message: str) -> bool:
        """Let a job of this status continue; return whether its message was sent."""
        note = Note(level="info", message=message)
        job = self._jobs.summary(job_id)
        queue = queue_of(job.stage, job.gpu_queue, job.cache_queue)
        stage = waiting_message(job.model_copy(update={"pending_queue": queue}))
        reply = scripts.resume_job(
            self._redis,
            job_key=record_key(job_id),
            events_key=events_key(job_id),
            ttl_s=self._ttl_s,
            from_status=status.value,
            event=note.model_dump_json(),
            queue=queue,
            message=stage.text,
        )
        if _known(job_id, reply) not in (*DispatchOutcome, JobStatus.PAUSING):
            raise InvalidStateError(job_id, f"{reply}, not {status}")
        return reply == DispatchOutcome.SENT


def _known(job_id: str, reply: str) -> str:
    if reply == "unknown":
        raise UnknownJobError(job_id)
    return reply
