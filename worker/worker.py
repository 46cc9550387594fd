"""One worker process: the Celery worker of one GPU, or of the CPU queue."""

import logging
import os
import select
import signal
import socket
import warnings
from collections.abc import Callable
from datetime import timedelta
from functools import cache, partial
from pathlib import Path
from typing import Any

from celery import Celery
from celery.exceptions import SecurityWarning
from celery.signals import (
    setup_logging,
    worker_process_shutdown,
    worker_ready,
    worker_shutdown,
    worker_shutting_down,
)
from celery.worker.control import control_command

from routing.classes import MemoryClass
from routing.engines import DIFFUSERS, INVOKE, Engine
from routing.queues import gpu_queue
from tasks.app import make_app
from tasks.cache.index import CacheRegistry
from tasks.eta.history import RunHistoryStore
from tasks.logging_setup import set_up_logging
from tasks.metrics import LEASE_LOSSES, LEASE_RENEWALS, REDELIVERED_MESSAGES, WEBHOOKS
from tasks.settings.settings import Settings
from tasks.stages.dispatch import send_rest
from tasks.stages.worker_context import Backoff, WorkerContext
from tasks.state.control import JobControl
from tasks.state.counters import Counters
from tasks.state.job_store import JobState, connect
from tasks.state.record import VERSION
from tasks.state.tenant_queues import TenantQueues
from tasks.state.workers import (
    GpuStats,
    WorkerHeartbeat,
    WorkerInfo,
    live_workers,
    newest_versions,
    next_larger_class,
)
from tasks.store import Store
from tasks.tracing.spans import start_tracing
from worker.gpu.gpu_sampler import GpuSampler
from worker.gpu.host_memory import host_memory_bytes, too_little_memory
from worker.gpu.inventory import Gpu
from worker.gpu.quarantine import GpuFaultPipe, Quarantine, make_gate
from worker.kombu_redis.leases import LeaseRenewal
from worker.kombu_redis.redelivery import Sweep
from worker.kombu_redis.transport import Keys, use_for_redis
from worker.lifecycle.event_batches import EventBatches
from worker.lifecycle.health import ReadyFile
from worker.lifecycle.idle_shutdown import IdleShutdown
from worker.lifecycle.preemption import watch_for_notice
from worker.maintenance.leader import LeaderLoop
from worker.maintenance.reconciler import Reconciler
from worker.maintenance.webhooks import Webhooks
from worker.supervision.engines import EngineTrainers, invoke_command, invoke_environment
from worker.supervision.trainer_pool import Limits, TrainerPool, trainer_environment

logger = logging.getLogger(__name__)

# Enough for the restart of a broker while cache entries are looked up; a stage whose trainer
# runs does not wait for a broker.
_PATIENCE = timedelta(seconds=15)


def run_worker(
    settings: Settings,
    broker_url: str,
    *,
    name: str,
    queues: tuple[str, ...],
    gpu: Gpu | None,
    engines: tuple[Engine, ...] = (DIFFUSERS,),
    ready_file: Path | None = None,
    exit_when_idle_s: float | None = None,
) -> int:
    """Work until stopped.

    Args:
        settings: The process's settings.
        broker_url: The fleet's broker.
        name: The worker's name, unique on this machine.
        queues: What it serves, first served first.
        gpu: Its GPU; None on the CPU queue.
        engines: What it can train with.
        ready_file: Made when the worker takes messages, and touched for as long as it is well.
        exit_when_idle_s: Ends a worker that has had nothing to do for so long.

    Returns:
        The exit code.
    """
    set_up_logging(settings.log_format, name)
    # Celery warns root users of pickles in messages; ours are JSON, and nothing else is accepted.
    warnings.simplefilter("ignore", SecurityWarning)
    setup_logging.connect(_keep_our_logging)
    drain, reports = _Drain(), GpuFaultPipe()
    worker_name = f"{name}@{socket.gethostname()}"
    real_gpu = None if gpu is None or gpu.emulated else gpu
    if real_gpu is not None:
        _warn_of_memory(queues)

    @cache
    def runtime() -> WorkerContext:
        """Made in the process that runs tasks: connections do not survive a fork."""
        env = trainer_environment(dict(os.environ), real_gpu.uuid if real_gpu else None)
        trainer = _trainers(settings, env)
        patient = connect(broker_url, patience=_PATIENCE)
        own_class = gpu.memory_class if gpu else None
        return WorkerContext(
            state=JobState(connect(broker_url), settings.job_ttl, settings.constants),
            cache=CacheRegistry(patient, settings.job_ttl, settings.visibility_timeout),
            store=Store(settings.resolved_store_url),
            trainer=trainer,
            access=settings.data_access(),
            downloads_dir=settings.downloads_dir,
            scratch_dir=settings.resolved_scratch_dir,
            worker=worker_name,
            device="cuda" if real_gpu else "cpu",
            next_larger_class=partial(next_larger_class, patient, own_class),
            backoff=Backoff(settings.max_retries, settings.retry_backoff.total_seconds()),
            check_gpu=make_gate(real_gpu, reports, trainer.close),
            dispatch=_lanes(app, settings).dispatch,
            newest_versions=lambda: newest_versions(patient),
            learn=RunHistoryStore(connect(broker_url), settings.job_ttl, own_class).record,
            memory_class=own_class,
            tracing=start_tracing(worker_name),
        )

    use_for_redis()
    app = make_app(settings, broker_url, runtime, drain.begun)
    presence = WorkerInfo(
        version=VERSION,
        queues=queues,
        memory_class=gpu.memory_class if gpu else None,
        gpu_uuid=gpu.uuid if gpu else None,
        gpu_name=gpu.name if gpu else None,
        gpu_mib=gpu.memory_mib if gpu else 0,
        engines=engines if gpu else (),
    )
    leases = connect(broker_url)
    figures = _figures_of(real_gpu, settings.visibility_timeout)
    note = WorkerHeartbeat(leases, worker_name, presence, settings.visibility_timeout * 2, figures)
    counters = Counters(leases, settings.job_ttl)

    def renewed(held: int, lost: int) -> None:
        note.renew()
        counters.count(LEASE_RENEWALS.one(by=held) | LEASE_LOSSES.one(by=lost))

    ready = ReadyFile(ready_file)
    app.steps["consumer"].add(LeaseRenewal.with_client(leases, renewed, ready.touch))
    if exit_when_idle_s is not None:
        app.steps["consumer"].add(IdleShutdown.after(exit_when_idle_s, _end_this_worker))
    app.steps["consumer"].add(EventBatches)
    if real_gpu is not None:
        watch = Quarantine.of(real_gpu, reports, note.quarantined, drain.begin)
        app.steps["consumer"].add(watch)
    worker_shutting_down.connect(drain.begin)

    def end_kept_trainer(**_: object) -> None:
        """Called in the pool's child; one that never ran a task has no runtime yet."""
        if runtime.cache_info().currsize:
            runtime().trainer.close()
            runtime().tracing.close()

    worker_process_shutdown.connect(end_kept_trainer, weak=False)
    worker_ready.connect(lambda **_: note.renew(), weak=False)
    worker_ready.connect(lambda **_: _start_upkeep(app, settings), weak=False)
    worker_shutdown.connect(lambda **_: note.forget(), weak=False)
    if settings.preemption_source is not None:
        notice = settings.preemption_source
        worker_ready.connect(lambda **_: watch_for_notice(notice, _end_this_worker), weak=False)
    worker_ready.connect(lambda **_: ready.make(), weak=False)
    return _start(app, worker_name, queues)


@control_command(name="drain")  # type: ignore[untyped-decorator]
def _drain(state: object) -> dict[str, str]:
    """What ``training-worker drain`` asks of a worker."""
    _end_this_worker()
    return {"ok": "drains"}


def _end_this_worker() -> None:
    """As its supervisor would: its job goes back from a checkpoint."""
    os.kill(os.getpid(), signal.SIGTERM)


def _figures_of(gpu: Gpu | None, timeout: timedelta) -> Callable[[], GpuStats | None]:
    """What gives a GPU's newest figures, once the worker is ready."""
    if gpu is None:
        return lambda: None
    meter = GpuSampler(gpu.uuid, timeout / 4)
    worker_ready.connect(lambda **_: meter.start(), weak=False)
    return meter.newest


def _warn_of_memory(queues: tuple[str, ...]) -> None:
    largest = max(
        c for c in MemoryClass if {gpu_queue(c), gpu_queue(c, INVOKE)}.intersection(queues)
    )
    problem = too_little_memory(largest, host_memory_bytes())
    if problem is not None:
        logger.warning("this machine has %s", problem)


def _trainers(settings: Settings, env: dict[str, str]) -> EngineTrainers:
    common: dict[str, Any] = {
        "restarts": settings.trainer_restarts,
        "stop_grace_s": settings.shutdown_timeout.total_seconds(),
        "limits": _limits(settings),
        "idle_s": settings.trainer_idle_timeout.total_seconds(),
    }
    own = TrainerPool(env, most_requests=settings.trainer_max_requests, **common)
    # A process for each: the library trains once.
    command = invoke_command(settings)
    invoke = TrainerPool(invoke_environment(env), command=command, **common)
    return EngineTrainers(own, invoke, settings.invoke_patches)


def _limits(settings: Settings) -> Limits:
    total = settings.stage_timeout
    return Limits(
        silence_s=settings.trainer_heartbeat_timeout.total_seconds(),
        memory=settings.trainer_max_memory,
        total_s=total.total_seconds() if total else None,
    )


def _start_upkeep(app: Celery, settings: Settings) -> None:
    timeout = settings.visibility_timeout
    client = connect(app.conf.broker_url)
    control = JobControl(client, settings.job_ttl)
    reconciler = Reconciler(client, control, lambda record: send_rest(app, record), timeout)
    lanes = _lanes(app, settings)

    def note_fleet() -> None:
        live = [it for it in live_workers(client).values() if it.quarantined is None]
        lanes.note_fleet(live, settings.shares_by_tenant(), timeout * 2)

    duties = (note_fleet, lanes.dispatch, reconciler.send_due, reconciler.sweep_if_due)
    keys = Keys.of(app.conf.broker_transport_options)
    sweep, counters = Sweep(client, timeout, keys), Counters(client, settings.job_ttl)

    def restore() -> None:
        counters.count(REDELIVERED_MESSAGES.one(by=len(sweep.restore_expired())))

    LeaderLoop(client, timeout, duties, restore=restore).start()
    # By itself: whoever is told may be slow.
    client = connect(app.conf.broker_url)
    webhooks = Webhooks(
        client,
        JobState(client, settings.job_ttl),
        settings.webhook_url,
        settings.webhook_signing_secrets(),
        lambda result: counters.count(WEBHOOKS.one(result)),
    )
    LeaderLoop(client, timeout, [webhooks.tell_due], lease="training:webhooks:lease").start()


def _lanes(app: Celery, settings: Settings) -> TenantQueues:
    client = connect(app.conf.broker_url)
    return TenantQueues(client, settings.job_ttl, lambda record: send_rest(app, record))


def _start(app: Celery, worker_name: str, queues: tuple[str, ...]) -> int:
    worker = app.Worker(
        hostname=worker_name,
        queues=list(queues),
        optimization="fair",
        without_mingle=True,
        without_gossip=True,
        quiet=True,
    )
    worker.start()
    return int(worker.exitcode or 0)


def _keep_our_logging(**_: object) -> None:
    """Celery sets up no logging of its own where somebody listens to this signal."""


class _Drain:
    """Tells the pool's child that the worker is going away, through a pipe made before the fork."""

    def __init__(self) -> None:
        self._read_fd, self._write_fd = os.pipe()

    def begin(self, **_: object) -> None:
        """Called in the parent when it is asked to stop."""
        os.write(self._write_fd, b".")

    def begun(self) -> bool:
        """Whether the worker is going away; asked in the child."""
        ready, _, _ = select.select([self._read_fd], [], [], 0)
        return bool(ready)
