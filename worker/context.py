"""What stages need from this worker, made in the pool's child process, which runs them."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from functools import partial

from celery import Celery
from redis import Redis

from routing.classes import MemoryClass
from routing.queues import Engine
from tasks.access.tenant_secrets import TenantSecrets
from tasks.cache.index import PackIndex
from tasks.captions.runs import CaptionRuns
from tasks.eta.history import RunHistoryStore, WorkDone
from tasks.settings.settings import Settings
from tasks.stages.worker_context import (
    Backoff,
    CaptionServices,
    Tracker,
    WorkerContext,
    WorkerServices,
)
from tasks.state.audit import Action, newest_actor
from tasks.state.connection import connect
from tasks.state.counters import Counters
from tasks.state.job_store import JobStore
from tasks.state.record import JobRecord, StageRecord
from tasks.state.scripts import Candidates
from tasks.state.tenants.tenant_queues import TenantQueues
from tasks.state.workers import newest_versions, next_larger_class
from tasks.store import Store
from tasks.tracing.spans import start_tracing
from tasks.tracking import TrackerRequest
from worker.gpu.inventory import Gpu
from worker.gpu.quarantine import GpuFaultPipe, make_gate, report_failure
from worker.kombu_redis.transport import Keys
from worker.policy import WorkerPolicy
from worker.supervision.engines import make_trainers
from worker.supervision.tracker_process import TrackerProcess
from worker.supervision.trainer_pool import trainer_environment

# Enough for the restart of a broker while cache entries are looked up; a stage whose trainer runs
# does not wait for a broker.
_PATIENCE = timedelta(seconds=30)


class ChildContext(WorkerPolicy):
    """The child's context, made when the first task needs it: connections do not survive a fork.

    Args:
        make: Makes the context.
    """

    def __init__(self, make: Callable[[], WorkerContext]) -> None:
        self._make = make
        self._context: WorkerContext | None = None

    def get(self) -> WorkerContext:
        """Return the context, the same each time."""
        if self._context is None:
            self._context = self._make()
        return self._context

    def on_child_exit(self) -> None:
        """End the kept trainer and send the last spans."""
        if self._context is not None:
            self._context.trainer.close()
            self._context.tracing.close()


@dataclass(frozen=True)
class FleetServices(WorkerServices):
    """The services of a worker in a fleet.

    Attributes:
        client: A connection that waits for a broker that restarts.
        gpu_check: Raises ``GpuUnhealthy``, given the GiB that a stage needs.
    """

    client: Redis
    memory_class: MemoryClass | None
    gpu_check: Callable[[float], None]
    tenant_queues: TenantQueues
    history: RunHistoryStore

    def has_class(self, needed: MemoryClass) -> bool:
        """Return whether the worker's GPU is of this memory class or a larger one."""
        return self.memory_class is not None and self.memory_class >= needed

    def check_gpu(self, needed_gib: float) -> None:
        """Check the worker's GPU before a stage that uses it."""
        self.gpu_check(needed_gib)

    def dispatch_waiting(self, candidates: Candidates | None = None) -> None:
        """Send jobs that wait in tenant queues; see ``TenantQueues.dispatch``."""
        self.tenant_queues.dispatch(candidates)

    def next_larger_class(self, engine: Engine) -> MemoryClass | None:
        """Return the next class above this worker's that a live worker with this engine has."""
        return next_larger_class(self.client, self.memory_class, engine)

    def newest_versions(self) -> dict[str, int]:
        """Return the newest version of the program that serves each queue."""
        return newest_versions(self.client)

    def actor_of(self, action: Action, job_id: str) -> str | None:
        """Return who last did something to a job; None if the audit log does not have it."""
        return newest_actor(self.client, action, job_id)

    def open_tracker(self, request: TrackerRequest) -> Tracker | None:
        """Begin to report a run."""
        return TrackerProcess(request, os.environ)

    def record_run(
        self, record: JobRecord, stage: str, stage_record: StageRecord, work: WorkDone
    ) -> None:
        """Record how long a stage took, for the estimates of later jobs."""
        self.history.record_run(record, stage, stage_record, work)


def make_context(
    app: Celery,
    settings: Settings,
    broker_url: str,
    worker: str,
    gpu: Gpu | None,
    faults: GpuFaultPipe,
) -> WorkerContext:
    """Make a worker's context.

    Args:
        app: The worker's application.
        settings: The process's settings.
        broker_url: The fleet's broker.
        worker: The worker's name.
        gpu: The worker's GPU; None on the CPU queue.
        faults: Takes the GPU's faults to the parent process.
    """
    real_gpu = None if gpu is None or gpu.emulated else gpu
    memory_class = gpu.memory_class if gpu else None
    env = trainer_environment(dict(os.environ), real_gpu.uuid if real_gpu else None)
    trainer = make_trainers(settings, env, partial(report_failure, faults))
    client = connect(broker_url)
    patient = connect(broker_url, patience=_PATIENCE)
    keys = Keys.of(app.conf.broker_transport_options)
    tenant_queues = TenantQueues(client, settings.job_ttl)
    return WorkerContext(
        state=JobStore(
            client,
            settings.job_ttl,
            settings.constants,
            unacked_index=keys.unacked_index,
            prices=settings.prices(),
        ),
        pack_index=PackIndex(patient, settings.job_ttl, settings.visibility_timeout),
        store=Store(settings.resolved_store_url),
        trainer=trainer,
        read_policy=settings.data_access(),
        downloads_dir=settings.downloads_dir,
        scratch_dir=settings.resolved_scratch_dir,
        name=worker,
        device="cuda" if real_gpu else "cpu",
        services=FleetServices(
            patient,
            memory_class,
            make_gate(real_gpu, faults, trainer.close),
            tenant_queues,
            RunHistoryStore(
                client, settings.job_ttl, memory_class, emulated=gpu is not None and gpu.emulated
            ),
        ),
        backoff=Backoff(settings.max_retries, settings.retry_backoff.total_seconds()),
        memory_class=memory_class,
        tracing=start_tracing(worker),
        secrets=TenantSecrets(settings.secrets_dir),
        captions=CaptionServices(
            CaptionRuns(client),
            trainer,
            Counters(client, settings.job_ttl),
            settings.visibility_timeout.total_seconds(),
            settings.data_max_bytes,
        ),
    )
