"""What commands, the console and its API need to talk to a running fleet."""

from collections.abc import Sequence
from typing import Any
from uuid import uuid4

import redis
from celery import Celery
from opentelemetry.trace import NoOpTracer, Tracer

from tasks.app import make_app
from tasks.errors import ErrorCode, JobError, NoBrokerError, NoWorkerError
from tasks.eta.history import RunHistoryStore
from tasks.jobs.job import parse_job
from tasks.settings.settings import Settings
from tasks.stages.dispatch import send_rest
from tasks.stages.submit import admit
from tasks.state.connection import connect
from tasks.state.control import JobControl
from tasks.state.job_store import DispatchOutcome, JobStore
from tasks.state.record import READS, JobRecord, JobStatus
from tasks.state.tenant_queues import TenantQueues
from tasks.state.workers import WorkerInfo, live_workers, newest_versions, why_unserved
from tasks.tracing.spans import record_job


class Client:
    """A connection to the fleet; safe to use by several threads.

    Args:
        settings: The process's settings.
        broker_url: The fleet's broker.
        tracer: Makes the spans of jobs that end here.

    Raises:
        NoBrokerError: It does not answer.
    """

    def __init__(self, settings: Settings, broker_url: str, tracer: Tracer | None = None) -> None:
        self._tracer = tracer or NoOpTracer()
        self.broker_url = broker_url
        connection = connect(broker_url)
        try:
            connection.ping()
        except redis.RedisError as error:
            raise NoBrokerError(f"the broker does not answer: {error}") from error
        self._redis = connection
        self._constants = settings.constants
        self.state = JobStore(connection, settings.job_ttl, settings.constants)
        self.control = JobControl(connection, settings.job_ttl)
        self.run_history = RunHistoryStore(connection, settings.job_ttl)
        self._app: Celery = make_app(settings, broker_url)
        self.tenant_queues = TenantQueues(
            connection, settings.job_ttl, lambda record: send_rest(self._app, record)
        )

    def submit(
        self,
        document: dict[str, Any],
        *,
        require_worker: bool = False,
        reads: Sequence[str] | None = None,
    ) -> str:
        """Check, record and dispatch a job.

        Args:
            document: The job.
            require_worker: Refuse it unless a live worker can take it.
            reads: Where its datasets may lie beside what is public; None: wherever the workers
                may read.

        Returns:
            Its id.

        Raises:
            InvalidJobError: It cannot run as described.
            DoesNotFitJobError: No GPU memory class holds it.
            NoWorkerError: ``require_worker``, and no live worker serves its GPU queue.
        """
        if require_worker:
            self._require_worker(document)
        refs = None if reads is None else {READS: "\n".join(reads)}
        job_id, _, admission = admit(document, self.state, uuid4().hex, refs)
        self._go_on(job_id, admission == DispatchOutcome.SENT)
        return job_id

    def cancel(self, job_id: str, *, save: bool = False) -> JobStatus:
        """Cancel a job; see ``JobControl.cancel``. Whoever waits for its result is told."""
        status = self.control.cancel(job_id, save=save)
        record = self.state.summary(job_id)
        if status == JobStatus.CANCELLED and record.error is not None:
            # Nothing runs that could tell it.
            error = JobError(record.error, ErrorCode.CANCELLED, record.error_stage or "")
            self._app.backend.store_result(record.result_id, error, "FAILURE")
            ended_at = record.updated_at.timestamp()
            record_job(self._tracer, record, status, ended_at, record.error_code)
        elif status == JobStatus.CANCELLING and record.pending_queue is not None:
            send_rest(self._app, record)
        return status

    def resume(self, job_id: str) -> None:
        """Let a paused job go on; see ``JobControl.resume``."""
        self._go_on(job_id, self.control.resume(job_id))

    def replay(self, job_id: str) -> None:
        """Let a failed job go on; see ``JobControl.replay``."""
        self._go_on(job_id, self.control.replay(job_id))

    def present_workers(self) -> dict[str, WorkerInfo]:
        """The workers that have noted themselves lately, busy or not."""
        return live_workers(self._redis)

    def drain(self, workers: list[str]) -> None:
        """Let workers hand their jobs back and end."""
        self._app.control.broadcast("drain", destination=workers)

    def why_waiting(self, queue: str) -> str | None:
        """Why nobody takes from a queue, with what there is; None where a live worker serves it."""
        return why_unserved(self._redis, queue)

    def waits_for(self, record: JobRecord) -> str | None:
        """What a job waits for, in words; None where it runs or is over."""
        if record.status == JobStatus.PAUSED:
            return f"{record.stage} waits until somebody resumes the job"
        if record.due_at is not None:
            newest = newest_versions(self._redis).get(record.pending_queue or "", record.version)
            if newest < record.version:
                wanted = f"{record.stage} waits for a worker of version {record.version}"
                return f"{wanted}; those of {record.pending_queue} are of version {newest}"
            return f"{record.stage} is tried again at {record.due_at.astimezone():%H:%M:%S}"
        if record.pending_queue is None:
            return None
        reason = self.why_waiting(record.pending_queue)
        if reason is not None:
            return reason
        if not record.in_tenant_queue:
            return f"{record.stage} waits in {record.pending_queue} for a free worker"
        before = self.tenant_queues.jobs_before(record) or 0
        turn = f"a turn of tenant {record.job.tenant}, after {before} other jobs of it"
        return f"{record.stage} waits for {turn}"

    def _go_on(self, job_id: str, goes: bool) -> None:
        if goes:
            send_rest(self._app, self.state.summary(job_id))
        self.tenant_queues.dispatch()

    def _require_worker(self, document: dict[str, Any]) -> None:
        queue = parse_job(document).route(self._constants).gpu_queue
        reason = self.why_waiting(queue)
        if reason is not None:
            raise NoWorkerError(reason)
