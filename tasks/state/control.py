"""What people and sweepers do to jobs: cancel, pause, replay, send what is due or was lost."""

from datetime import timedelta
from typing import cast

from redis import Redis

from tasks.contract import events_key, record_key
from tasks.errors import ErrorCode, InvalidStateError, UnknownJobError, cancelled_message
from tasks.events import JobEnded, Note
from tasks.state import keys, scripts
from tasks.state.job_store import DispatchOutcome, JobStore
from tasks.state.record import NEXT_QUEUE, VERSION, JobRecord, JobStatus, JobSummary, queue_of
from tasks.state.workers import newest_versions


class JobControl:
    """Changes jobs from outside their stages; a running stage learns of it within a second.

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
        self._state = JobStore(client, ttl)
        self._unacked_index = unacked_index

    def cancel(self, job_id: str, *, save: bool = False) -> JobStatus:
        """Cancel a job: at once while it waits, within a step while it runs.

        Args:
            job_id: The job.
            save: Publish what there is: where the trainer runs, it saves a checkpoint first.

        Returns:
            Its status now; an ended job keeps its own. CANCELLING with nothing running means that
            the chain is to be sent from ``publish`` on.

        Raises:
            UnknownJobError: There is no such job.
        """
        message = cancelled_message(job_id)
        event = JobEnded(status="cancelled", message=message, code=ErrorCode.CANCELLED)
        status = scripts.cancel_job(
            self._redis,
            job_key=record_key(job_id),
            events_key=events_key(job_id),
            ttl_s=self._ttl_s,
            event=event.model_dump_json(),
            message=message,
            save_on_cancel=save,
        )
        return JobStatus(_known(job_id, status))

    def pause(self, job_id: str) -> JobStatus:
        """Keep a job from going on: at once while it waits, from a checkpoint while it runs.

        Returns:
            Its status now: PAUSED, or PAUSING until its trainer has saved a checkpoint.

        Raises:
            UnknownJobError: There is no such job.
            InvalidStateError: It is over, or being cancelled.
        """
        note = Note(level="info", message="somebody paused the job")
        answer = scripts.pause_job(
            self._redis,
            job_key=record_key(job_id),
            events_key=events_key(job_id),
            ttl_s=self._ttl_s,
            event=note.model_dump_json(),
        )
        status = JobStatus(_known(job_id, answer))
        if status not in (JobStatus.PAUSING, JobStatus.PAUSED):
            raise InvalidStateError(job_id, status, "waiting or running")
        return status

    def resume(self, job_id: str) -> bool:
        """Let a paused job go on.

        Returns:
            Whether its chain is to be sent anew; False where it had not stopped yet, or waits for
            its tenant's turn.

        Raises:
            UnknownJobError: There is no such job.
            InvalidStateError: It is not paused.
        """
        return self._reopened(job_id, JobStatus.PAUSED, "somebody resumed the job")

    def replay(self, job_id: str) -> bool:
        """Let a failed job go on from the stage and the checkpoint it has.

        Returns:
            Whether its chain is to be sent; False where it waits for its tenant's turn.

        Raises:
            UnknownJobError: There is no such job.
            InvalidStateError: It has not failed.
        """
        return self._reopened(job_id, JobStatus.FAILED, "somebody replayed the job")

    def dead(self) -> list[JobRecord]:
        """The jobs that failed through no fault of their own, the oldest end first."""
        ids = cast("list[str]", self._redis.zrange(keys.DEAD_LETTERS, 0, -1))
        return self._state.get_all(ids)

    def drop_dead(self, job_id: str) -> None:
        """Take a job off the list of the dead.

        Raises:
            InvalidStateError: It is not on it.
        """
        if not self._redis.zrem(keys.DEAD_LETTERS, job_id):
            raise InvalidStateError(job_id, "not", "on the list of the dead")

    def in_flight(self) -> list[JobRecord]:
        """The jobs that have a message, or should have one, and those whose stage runs."""
        return self._state.get_all(self._ids_in_flight())

    def heads_in_flight(self) -> list[JobSummary]:
        """What every version can read of them."""
        return self._state.heads(self._ids_in_flight())

    def requeue(self, job_id: str, attempt: int, stage: str) -> bool:
        """Let a stage whose message was lost begin again; False where it has gone on meanwhile."""
        note = Note(level="warning", message=f"the message of {stage} was lost; it is sent again")
        is_requeued = scripts.requeue_stage(
            self._redis,
            job_key=record_key(job_id),
            events_key=events_key(job_id),
            unacked_index=self._unacked_index,
            ttl_s=self._ttl_s,
            attempt=attempt,
            stage=stage,
            event=note.model_dump_json(),
        )
        return bool(is_requeued)

    def take_due(self) -> list[JobSummary]:
        """The jobs whose next try is due; each is given out once, for the caller to send.

        Those that are for newer workers than there are wait on.
        """
        now = self._redis.time()[0]
        due = cast("list[str]", self._redis.zrangebyscore(keys.DUE, "-inf", now))
        if not due:
            return []
        known = {head.id: head for head in self._state.heads(due)}
        versions = newest_versions(self._redis)
        taken = []
        for job_id in due:
            head = known.get(job_id)
            if head is None:
                wanted = job_id not in self._state.there_are([job_id])  # or cannot be read
            else:
                # Whoever asks is of this version itself.
                wanted = head.version <= max(VERSION, versions.get(head.pending_queue or "", 0))
            if wanted and self._take_due(job_id) and head:
                taken.append(head)
        return taken

    def _take_due(self, job_id: str) -> bool:
        is_taken = scripts.take_due_job(
            self._redis,
            job_key=record_key(job_id),
            events_key=events_key(job_id),
            ttl_s=self._ttl_s,
        )
        return bool(is_taken)

    def _ids_in_flight(self) -> list[str]:
        ids = sorted(cast("list[str]", self._redis.hkeys(keys.IN_FLIGHT)))
        there = self._state.there_are(ids)
        gone = set(ids) - there
        if gone:
            self._redis.hdel(keys.IN_FLIGHT, *gone)
        return [job_id for job_id in ids if job_id in there]

    def _reopened(self, job_id: str, status: JobStatus, message: str) -> bool:
        note = Note(level="info", message=message)
        record = self._state.head(job_id)
        queue = queue_of(record.stage, record.gpu_queue, record.refs.get(NEXT_QUEUE))
        answer = scripts.resume_job(
            self._redis,
            job_key=record_key(job_id),
            events_key=events_key(job_id),
            ttl_s=self._ttl_s,
            from_status=status.value,
            event=note.model_dump_json(),
            queue=queue,
        )
        if _known(job_id, answer) not in (*DispatchOutcome, JobStatus.PAUSING):
            raise InvalidStateError(job_id, answer, status)
        return answer == DispatchOutcome.SENT


def _known(job_id: str, answer: str) -> str:
    if answer == "unknown":
        raise UnknownJobError(job_id)
    return answer
