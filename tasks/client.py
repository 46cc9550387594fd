"""A client of a running fleet, for commands, the console and its API."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

from celery import Celery
from opentelemetry.trace import NoOpTracer, Tracer

from tasks.app import make_app
from tasks.captions.message import send_run
from tasks.captions.requests import CaptionRequestDocument
from tasks.captions.runs import CaptionRun, CaptionRuns
from tasks.clock import broker_time
from tasks.deletion import remains_of
from tasks.errors import NoWorkerError, UnknownJobError
from tasks.eta.history import RunHistoryStore
from tasks.eta.positions import Position, Positions
from tasks.jobs.edit import JobEdit
from tasks.jobs.job import TrainingJob, parse_job
from tasks.settings.settings import Settings
from tasks.stages.results import store_results
from tasks.stages.submit import submit_job
from tasks.state.artifacts import JobArtifacts
from tasks.state.audit import Action, AuditLog, Detail
from tasks.state.connection import check_server, connect
from tasks.state.control import JobControl
from tasks.state.deletions import Deletion, Deletions
from tasks.state.ended_jobs import EndedJobs
from tasks.state.job_store import DispatchOutcome, JobStore
from tasks.state.record import JobRecord, JobStatus, JobSummary
from tasks.state.tenants.quotas import Quotas
from tasks.state.tenants.tenant_queues import TenantQueues
from tasks.state.tenants.usage import UsageStore
from tasks.state.tenants.webhook_secrets import WebhookSecret, WebhookSecrets
from tasks.state.webhook_deliveries import WebhookDeliveries
from tasks.state.workers import WorkerInfo, live_workers, newest_versions, why_unserved
from tasks.store import Store
from tasks.tracing.spans import record_job


class Client:
    """A connection to the fleet; safe to use by several threads.

    Args:
        settings: The process's settings.
        broker_url: The fleet's broker.
        tracer: Makes the spans of jobs that end here.

    Raises:
        NoBrokerError: It does not answer, or is a cluster.
    """

    def __init__(self, settings: Settings, broker_url: str, tracer: Tracer | None = None) -> None:
        self._tracer = tracer or NoOpTracer()
        self.broker_url = broker_url
        connection = connect(broker_url)
        check_server(connection, broker_url)
        self._redis = connection
        self._constants, self._store_url = settings.constants, settings.resolved_store_url
        self.state = JobStore(connection, settings.job_ttl, settings.constants)
        self.control = JobControl(connection, settings.job_ttl)
        self.audit = AuditLog(connection, settings.audit_retention)
        self.ended_jobs = EndedJobs(connection, settings.job_ttl)
        self.deletions = Deletions(connection, settings.job_ttl)
        self.run_history = RunHistoryStore(connection, settings.job_ttl)
        self._app: Celery = make_app(settings, broker_url)
        self.tenant_queues = TenantQueues(connection, settings.job_ttl)
        self.quotas = Quotas(connection)
        self.usage = UsageStore(connection)
        self.captions = CaptionRuns(connection)
        self.webhook_secrets = WebhookSecrets(connection)
        self.webhook_deliveries = WebhookDeliveries(connection, settings.job_ttl)
        self.positions = Positions(
            connection, self.state, self.tenant_queues, self.quotas, self.run_history
        )

    def submit(
        self,
        document: dict[str, Any],
        *,
        require_worker: bool = False,
        reads: Sequence[str] | None = None,
    ) -> str:
        """Check, record and dispatch a job's document.

        Args:
            document: The job.
            require_worker: Refuse it unless a live worker can take it.
            reads: The roots that its datasets may be read from, besides public ones; None allows
                whatever the workers may read.

        Returns:
            The job's id.

        Raises:
            InvalidJobError: It cannot run as described.
            DoesNotFitJobError: No GPU memory class holds it.
            NoWorkerError: ``require_worker``, and no live worker serves its GPU queue.
            QuotaExceededError: A quota of its tenant refuses it.
        """
        return self.submit_job(parse_job(document), require_worker=require_worker, reads=reads)

    def submit_job(
        self,
        job: TrainingJob,
        *,
        require_worker: bool = False,
        reads: Sequence[str] | None = None,
    ) -> str:
        """Record and dispatch a job that is parsed already; see ``submit``."""
        if require_worker:
            self._check_served(job.route(self._constants).gpu_queue)
        artifacts = JobArtifacts() if reads is None else JobArtifacts(read_roots=tuple(reads))
        submission = submit_job(
            job, self.state, uuid4().hex, artifacts, open_store=lambda: Store(self._store_url)
        )
        if submission.outcome == DispatchOutcome.WAITING:
            self.tenant_queues.dispatch()
        return submission.job_id

    def cancel(self, job_id: str, actor: str, *, save: bool = False) -> JobStatus:
        """Cancel a job, and fail its Celery result; see ``JobControl.cancel``.

        As all changes here, it is recorded in the audit log.

        Args:
            job_id: The job.
            actor: Who cancels it, for the audit log.
            save: Publish the last checkpoint.
        """
        with self._recording(actor, Action.JOB_CANCEL, job_id, save=save):
            status = self.control.cancel(job_id, save=save)
        record = self.state.summary(job_id)
        if status == JobStatus.CANCELLED and record.error is not None:
            # No worker runs the job, and could store its result.
            store_results(self._app, record)
            ended_at = record.updated_at.timestamp()
            record_job(self._tracer, record, status, ended_at, record.error_code)
        elif status == JobStatus.CANCELLING and record.pending_queue is not None:
            self.state.send(record)
        return status

    def pause(self, job_id: str, actor: str) -> JobStatus:
        """Pause a job; see ``JobControl.pause``."""
        with self._recording(actor, Action.JOB_PAUSE, job_id):
            return self.control.pause(job_id)

    def store_results(self, job: JobSummary) -> None:
        """Store an ended job's result under every id that follows it."""
        store_results(self._app, job)

    def resume(self, job_id: str, actor: str) -> None:
        """Resume a paused job; see ``JobControl.resume``."""
        with self._recording(actor, Action.JOB_RESUME, job_id):
            self.control.resume(job_id)
        self.tenant_queues.dispatch()

    def replay(self, job_id: str, actor: str) -> None:
        """Replay a failed job from its failed stage; see ``JobControl.replay``."""
        with self._recording(actor, Action.DEAD_LETTER_REPLAY, job_id):
            self.control.replay(job_id)
        self.tenant_queues.dispatch()

    def discard(self, job_id: str, actor: str) -> None:
        """Remove a job from the dead-letter queue; see ``JobControl.discard``."""
        with self._recording(actor, Action.DEAD_LETTER_DISCARD, job_id):
            self.control.discard(job_id)

    def prioritize(self, job_id: str, priority: int | None, actor: str) -> bool:
        """Change a waiting job's priority; see ``JobControl.prioritize``."""
        change = "front" if priority is None else priority
        with self._recording(actor, Action.JOB_PRIORITY, job_id, priority=change):
            return self.control.prioritize(job_id, priority)

    def edit(self, job_id: str, changes: JobEdit, actor: str) -> None:
        """Change what people call a job; see ``JobControl.edit``."""
        fields = changes.changes()
        with self._recording(actor, Action.JOB_EDIT, job_id, fields=" ".join(fields)):
            self.control.edit(job_id, **fields)

    def delete(self, job_id: str, actor: str) -> Deletion:
        """Delete the record of a job that has ended; the files follow (``tasks/deletion.py``).

        A job that was deleted before stays so.

        Raises:
            UnknownJobError: There is no such job.
            UnreadableJobError: Only a newer version can read it.
            InvalidStateError: It has not ended, or its results are being copied.
        """
        try:
            record = self.state.get(job_id)
        except UnknownJobError:
            deletion = self.deletions.find(job_id)
            if deletion is None:
                raise
            return deletion
        with self._recording(actor, Action.JOB_DELETE, job_id, name=record.name):
            if record.status.ended and self.ended_jobs.has_unstored_result(job_id):
                self.store_results(record)
            self.deletions.delete(record, remains_of(record))
        # A job that has changed since it was read is read again.
        return self.delete(job_id, actor)

    def change_quotas(
        self, tenant: str, changes: dict[str, float | bool | None], actor: str
    ) -> None:
        """Change some of a tenant's quotas; see ``Quotas.change``."""
        texts = {name: "none" if value is None else value for name, value in changes.items()}
        with self.audit.recording(actor, Action.QUOTA_SET, tenant, tenant=tenant, **texts):
            self.quotas.change(tenant, changes)
        self.tenant_queues.dispatch()

    def remove_quotas(self, tenant: str, actor: str) -> None:
        """Remove a tenant's own quotas."""
        with self.audit.recording(actor, Action.QUOTA_SET, tenant, tenant=tenant, removed=True):
            self.quotas.remove(tenant)
        self.tenant_queues.dispatch()

    def create_webhook_secret(self, tenant: str, actor: str) -> tuple[WebhookSecret, str]:
        """Create a webhook secret; see ``WebhookSecrets.create``."""
        action = Action.WEBHOOK_SECRET_CREATE
        with self.audit.recording(actor, action, tenant, tenant=tenant):
            return self.webhook_secrets.create(tenant)

    def revoke_webhook_secret(self, tenant: str, secret_id: str, actor: str) -> None:
        """Revoke a webhook secret; see ``WebhookSecrets.revoke``."""
        action = Action.WEBHOOK_SECRET_REVOKE
        with self.audit.recording(actor, action, tenant, tenant=tenant, secret=secret_id):
            self.webhook_secrets.revoke(tenant, secret_id)

    def redeliver(self, job_id: str, sequence: int | None, actor: str) -> list[int]:
        """Deliver a job's webhook again; see ``WebhookDeliveries.redeliver``."""
        with self._recording(actor, Action.WEBHOOK_REDELIVER, job_id, sequence=sequence):
            now = broker_time(self._redis)
            tenant = self.state.get(job_id).job.tenant
            return self.webhook_deliveries.redeliver(job_id, tenant, sequence, now)

    def start_captions(self, request: CaptionRequestDocument) -> CaptionRun:
        """Start to write captions; the unfinished run of the same request is not started twice.

        Raises:
            TooManyCaptionRunsError: The tenant has too many runs that have not ended.
        """
        run, is_new = self.captions.create(request)
        if is_new:
            try:
                send_run(self._app, run)
            except BaseException:
                self.captions.remove(run)
                raise
        return run

    def live_workers(self) -> dict[str, WorkerInfo]:
        """Return the workers with a recent heartbeat, busy or not."""
        return live_workers(self._redis)

    def drain(self, workers: list[str], actor: str) -> None:
        """Let workers give their jobs back and end."""
        for worker in workers:
            self.audit.record(actor, Action.WORKER_DRAIN, worker)
        self._app.control.broadcast("drain", destination=workers)

    def unserved_reason(self, queue: str) -> str | None:
        """Return why no worker takes from a queue; None if a live worker serves it."""
        return why_unserved(self._redis, queue)

    def waiting_reason(self, record: JobRecord, position: Position | None = None) -> str | None:
        """Return what a job waits for, in words; None if it runs or has ended.

        Args:
            record: The job.
            position: Where it stands; None reads it.
        """
        if record.status == JobStatus.PAUSED:
            return f"{record.stage} waits until the job is resumed"
        if record.due_at is not None:
            newest = newest_versions(self._redis).get(record.pending_queue or "", record.version)
            if newest < record.version:
                needed = f"{record.stage} waits for a worker of version {record.version}"
                return f"{needed}; those of {record.pending_queue} have version {newest}"
            return f"{record.stage} is retried at {record.due_at.astimezone():%H:%M:%S}"
        if record.pending_queue is None:
            return None
        reason = self.unserved_reason(record.pending_queue)
        if reason is not None:
            return reason
        position = position or self.positions.of(record)
        if position is not None and position.quota is not None:
            held = "until the month ends or the operator raises the quota"
            return f"{record.stage} waits {held}: {position.quota}"
        where = f"{record.stage} waits in {record.pending_queue} for a free worker"
        if record.in_tenant_queue:
            where = f"{record.stage} waits in the queue of tenant {record.tenant}"
        return ", ".join([where, *_position_texts(position)])

    def waiting_text(self, record: JobRecord) -> str:
        """Return what a job waits for, shorter than ``waiting_reason``; empty if it runs."""
        position = self.positions.of(record)
        if position is None or position.jobs_before is None:
            return self.waiting_reason(record, position) or ""
        return ", ".join([record.pending_queue or "", *_position_texts(position)])

    def _recording(
        self, actor: str, action: Action, job_id: str, **details: Detail
    ) -> AbstractContextManager[None]:
        """Record a change of a job in the audit log."""
        tenant = self.state.tenant_of(job_id)
        return self.audit.recording(actor, action, job_id, tenant=tenant, **details)

    def _check_served(self, queue: str) -> None:
        reason = self.unserved_reason(queue)
        if reason is not None:
            raise NoWorkerError(reason)


def _position_texts(position: Position | None) -> list[str]:
    """Return where a job stands in words."""
    parts = []
    if position is not None and position.jobs_before is not None:
        count = position.jobs_before
        parts.append("next" if not count else f"{count} job{'s' if count > 1 else ''} before it")
    if position is not None and position.starts_at is not None:
        left_s = (position.starts_at - datetime.now(UTC)).total_seconds()
        parts.append(f"starts in {_about(left_s)}")
    elif position is not None and position.unknown is not None:
        parts.append(f"start unknown: {position.unknown}")
    return parts


def _about(seconds: float) -> str:
    """Return a duration as an estimate of it is worth."""
    minutes = round(seconds / 60)
    if minutes < 1:
        return "less than a minute"
    return f"about {minutes} min" if minutes < 120 else f"about {round(minutes / 60)} h"
