"""One worker process: the Celery worker of one GPU, or of the CPU queue, as a list of policies."""

import logging
import socket
import warnings
from importlib.metadata import version
from pathlib import Path

import redis
from celery import Celery
from celery.exceptions import CPendingDeprecationWarning, SecurityWarning
from celery.signals import setup_logging

from routing.queues import DIFFUSERS, Engine, with_submit_queue
from tasks.process.logging_setup import set_up_logging
from tasks.process.signals import drain_on_hangup, ignored_signals
from tasks.settings.settings import Settings
from tasks.stages.celery_tasks import make_worker_app
from tasks.state.connection import check_mode, connect, why_unanswered
from tasks.state.record import VERSION
from tasks.state.workers import WorkerInfo
from worker.context import ChildContext, make_context
from worker.gpu.gpu_sampler import GpuSampler
from worker.gpu.host_memory import worker_memory_shortage
from worker.gpu.inventory import Gpu, why_untrainable
from worker.gpu.quarantine import GpuFaultPipe, GpuQuarantine
from worker.kombu_redis.leases import LeaseOptions, install_leases
from worker.kombu_redis.queue_order import QUEUE_ORDER
from worker.kombu_redis.transport import Keys, use_for_redis
from worker.lifecycle.drain import Drain, shut_down
from worker.lifecycle.event_batches import EventBatches
from worker.lifecycle.health import HealthFile
from worker.lifecycle.idle_shutdown import IdleShutdown
from worker.lifecycle.patient_consumer import install_patience
from worker.lifecycle.preemption import PreemptionWatch
from worker.lifecycle.read_ahead import ReadAhead
from worker.lifecycle.registration import Registration
from worker.lifecycle.remote_control import restrict_remote_control
from worker.lifecycle.scratch import ScratchCleanup
from worker.maintenance.fleet_maintenance import FleetMaintenance
from worker.message_guard import MessageGuard, unreadable_messages
from worker.periodic import ThreadWatch
from worker.policy import WorkerPolicy, install_policies

logger = logging.getLogger(__name__)


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
    """Run a worker until it is stopped.

    Args:
        settings: The process's settings.
        broker_url: The fleet's broker.
        name: The worker's name, unique on this machine.
        queues: The queues it serves, in order of priority. One of ``cpu`` also serves ``submit``.
        gpu: Its GPU; None on the CPU queue.
        engines: The engines it trains with.
        ready_file: A file that the worker makes when ready, and touches while it is healthy.
        exit_when_idle_s: Stops a worker that has had no message for this long.

    Returns:
        The exit code.

    Raises:
        NoBrokerError: The broker is a cluster.
    """
    _set_up_logging(settings, name)
    restrict_remote_control()
    queues = with_submit_queue(queues)
    worker = f"{name}@{socket.gethostname()}"
    real_gpu = None if gpu is None or gpu.emulated else gpu
    drain, faults = Drain(), GpuFaultPipe()
    context = ChildContext(lambda: make_context(app, settings, broker_url, worker, gpu, faults))
    gpu_name = gpu.name if gpu else None
    app = make_worker_app(settings, broker_url, context.get, drain.requested, gpu_name)
    app.conf.broker_transport_options["queue_order_strategy"] = QUEUE_ORDER
    client = _connect(broker_url)
    use_for_redis(MessageGuard(client).read, unreadable_messages(client, settings.job_ttl))
    keys = Keys.of(app.conf.broker_transport_options)
    watch, renewal_interval = ThreadWatch(shut_down), settings.visibility_timeout / 4
    sampler = GpuSampler(real_gpu.uuid if real_gpu else None, renewal_interval, watch)
    unsupported = why_untrainable(gpu) if gpu is not None else None
    info = _describe(queues, gpu, engines, unsupported)
    registration = Registration(client, settings, worker, info, sampler.newest, watch)
    registration.claim_name()
    health = HealthFile(ready_file, renewal_interval, watch)

    policies: list[WorkerPolicy] = [
        drain,
        context,
        registration,
        sampler,
        EventBatches(),
        FleetMaintenance(app, client, settings, keys, watch),
        ScratchCleanup(settings.resolved_scratch_dir, client, watch),
    ]
    if real_gpu is not None:
        on_change, on_permanent = registration.set_quarantined, drain.begin
        policies.append(
            GpuQuarantine(real_gpu, unsupported, faults, on_change, on_permanent, watch)
        )
        _warn_of_little_memory(queues)
    if gpu is not None and settings.read_ahead:
        policies.append(ReadAhead(client, keys, queues, watch))
    if settings.preemption_source is not None:
        policies.append(PreemptionWatch(settings.preemption_source, shut_down, watch))
    if exit_when_idle_s is not None:
        policies.append(IdleShutdown(exit_when_idle_s, shut_down))
    policies.append(health)  # the last one: a ready worker has all of them
    install_policies(app, policies)
    install_patience(app, client)
    install_leases(app, LeaseOptions(client, watch, registration.renew, health.report_alive))
    return _start(app, worker, queues) or int(watch.has_given_up)


def _connect(broker_url: str) -> redis.Redis:
    """Return a client of a broker that can hold the fleet's keys, or is unavailable.

    Raises:
        NoBrokerError: The broker is a cluster.
    """
    client = connect(broker_url)
    try:
        check_mode(client)
    except redis.RedisError as error:
        logger.warning("%s; the worker waits for it", why_unanswered(broker_url, error))
    return client


def _set_up_logging(settings: Settings, name: str) -> None:
    set_up_logging(settings.log_format, name, settings.log_level)
    # Celery configures no logging if this signal has a receiver.
    setup_logging.connect(_keep_logging)
    # Celery warns root users of pickles in messages; we accept JSON only.
    warnings.simplefilter("ignore", SecurityWarning)
    # Celery announces a default that we set, at each lost connection.
    warnings.simplefilter("ignore", CPendingDeprecationWarning)


def _keep_logging(**_: object) -> None:
    """Receive ``setup_logging``."""


def _describe(
    queues: tuple[str, ...], gpu: Gpu | None, engines: tuple[Engine, ...], unsupported: str | None
) -> WorkerInfo:
    return WorkerInfo(
        version=VERSION,
        release=version("training-worker"),
        queues=queues,
        memory_class=gpu.memory_class if gpu else None,
        gpu_uuid=gpu.uuid if gpu else None,
        gpu_name=gpu.name if gpu else None,
        gpu_mib=gpu.memory_mib if gpu else 0,
        quarantined=unsupported,
        engines=engines if gpu else (),
    )


def _warn_of_little_memory(queues: tuple[str, ...]) -> None:
    shortage = worker_memory_shortage(queues)
    if shortage is not None:
        logger.warning("this machine has %s", shortage)


def _start(app: Celery, worker: str, queues: tuple[str, ...]) -> int:
    celery_worker = app.Worker(
        hostname=worker,
        queues=list(queues),
        optimization="fair",
        without_mingle=True,
        without_gossip=True,
        quiet=True,
    )
    install_handlers, ignored = celery_worker.install_platform_tweaks, ignored_signals()

    def install_all_handlers(worker: object) -> None:
        """Replace Celery's, which restart on SIGHUP and drop the job on SIGQUIT."""
        install_handlers(worker)
        drain_on_hangup(ignored)

    celery_worker.install_platform_tweaks = install_all_handlers
    celery_worker.start()
    return int(celery_worker.exitcode or 0)
