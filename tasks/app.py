"""The Celery application: settings that keep long jobs safe, and the tasks by their wire names."""

import logging
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import redis
from celery import Celery, Task
from celery.exceptions import Ignore, Reject
from kombu.entity import Queue

from routing.queues import ALL_QUEUES, CPU_QUEUE
from tasks.contract import SUBMIT, SUBMIT_QUEUE, task_name
from tasks.errors import JobError
from tasks.settings.settings import Settings
from tasks.stages.cache import cache
from tasks.stages.dispatch import job_chain
from tasks.stages.prepare import prepare
from tasks.stages.publish import publish
from tasks.stages.runner import (
    DeferredToNewerWorker,
    Delivery,
    Discarded,
    Requeued,
    Rerouted,
    StageBody,
    run_stage,
)
from tasks.stages.submit import admit, newer_than_known, with_id
from tasks.stages.train import train
from tasks.stages.worker_context import WorkerContext
from tasks.state.job_store import DispatchOutcome
from tasks.state.record import VERSION, VERSION_HEADER

logger = logging.getLogger(__name__)

_BODIES: dict[str, StageBody] = {
    "prepare": prepare,
    "cache": cache,
    "train": train,
    "publish": publish,
}
# As redis-py reads them from the URL's query.
_TLS_OPTIONS = ("ssl_cert_reqs", "ssl_ca_certs", "ssl_certfile", "ssl_keyfile")


def make_app(
    settings: Settings,
    broker_url: str,
    runtime: Callable[[], WorkerContext] | None = None,
    draining: Callable[[], bool] = lambda: False,
) -> Celery:
    """The application.

    Args:
        settings: The process's settings.
        broker_url: The broker, which also keeps results.
        runtime: Gives a worker's means, the same each time; called in the process that runs
            tasks. None in a process that only sends.
        draining: Whether the worker is going away.
    """
    app = Celery("training", broker=broker_url, backend=broker_url, set_as_current=False)
    app.conf.update(_configuration(settings) | _tls(broker_url))
    if runtime is not None:
        for stage, body in _BODIES.items():
            _add_stage(app, stage, body, runtime, draining)
        _add_submit(app, runtime)
    return app


def _configuration(settings: Settings) -> dict[str, Any]:
    return {
        # JSON only: a pickle is a program, and a broker is not a place to take programs from.
        "accept_content": ["json"],
        "task_serializer": "json",
        "result_serializer": "json",
        "result_expires": settings.job_ttl,
        # A message is acknowledged when its work is done, and only one is held at a time, so that
        # a lost worker loses nothing and an idle one is never passed over.
        "task_acks_late": True,
        "task_reject_on_worker_lost": True,
        "worker_prefetch_multiplier": 1,
        "worker_concurrency": 1,
        "worker_pool": "prefork",
        # A trainer's memory is given back by its own end; the child only waits for it.
        "worker_max_tasks_per_child": None,
        "worker_hijack_root_logger": False,
        "worker_cancel_long_running_tasks_on_connection_loss": False,
        "worker_send_task_events": True,
        "task_create_missing_queues": False,
        "task_default_queue": CPU_QUEUE,
        "task_queues": [Queue(name, routing_key=name) for name in ALL_QUEUES],  # type: ignore[no-untyped-call]
        # A broker that is away when a stage ends must not cost the next stage.
        "task_publish_retry_policy": {
            "max_retries": 300,
            "interval_start": 0.2,
            "interval_step": 0.5,
            "interval_max": 5,
        },
        "result_backend_always_retry": True,
        "broker_connection_retry_on_startup": True,
        "broker_connection_max_retries": None,
        "broker_transport_options": {
            # Own class first, then smaller ones, in the order the worker lists its queues.
            "queue_order_strategy": "priority",
            "visibility_timeout": settings.visibility_timeout.total_seconds(),
            # A network that swallows everything is noticed.
            "socket_keepalive": True,
            "socket_timeout": 15,
            "health_check_interval": 10,
        },
    }


def _tls(broker_url: str) -> dict[str, Any]:
    """How a ``rediss://`` server is checked: kombu would not, and Celery's backend must be told."""
    parts = urlsplit(broker_url)
    if parts.scheme != "rediss":
        return {}
    named = {name: value for name, value in parse_qsl(parts.query) if name in _TLS_OPTIONS}
    options = {"ssl_cert_reqs": "required", **named}
    return {"broker_use_ssl": options, "redis_backend_use_ssl": options}


def _add_stage(
    app: Celery,
    stage: str,
    body: StageBody,
    runtime: Callable[[], WorkerContext],
    draining: Callable[[], bool],
) -> None:
    # Not shared: Celery would give this task, with this runtime, to every other app of the process.
    # Moves to other queues are counted by nobody: none leads back.
    @app.task(  # type: ignore[untyped-decorator]
        name=task_name(stage), bind=True, shared=False, throws=(JobError,), max_retries=None
    )
    def run(self: Task, job_id: str) -> dict[str, Any]:
        info = self.request.delivery_info or {}
        tag = (self.request.properties or {}).get("delivery_tag", "")
        version = int(self.request.get(VERSION_HEADER) or 1)
        delivery = Delivery(str(info.get("routing_key", "")), str(tag), version)
        means, goes_on = runtime(), False
        try:
            end = run_stage(stage, body, job_id, delivery, means, draining)
            goes_on = end.next_queue is not None
            _route_next(self.request, end.next_queue)
            return end.answer
        except Rerouted as moved:
            logger.info("moved: %s", moved.reason, extra={"job": job_id, "stage": stage})
            raise self.retry(queue=moved.queue, countdown=0) from None
        except DeferredToNewerWorker as passed:
            raise Ignore(str(passed)) from passed
        except Discarded as dropped:
            logger.info("dropped: %s", dropped, extra={"job": job_id, "stage": stage})
            raise Ignore(str(dropped)) from dropped
        except (Requeued, redis.RedisError) as released:
            logger.info("handed back: %s", released, extra={"job": job_id, "stage": stage})
            raise Reject(str(released), requeue=True) from released
        except JobError as error:
            raise error.for_wire() from error
        finally:
            # A job that goes on makes room for none.
            if not goes_on:
                means.dispatch()


def _route_next(request: Any, queue: str | None) -> None:
    """Send the chain's next stage to the queue that the job's record says it waits in.

    Args:
        request: The task's.
        queue: None where the chain ends here: what is left of it is sent when the job may go on.
    """
    if not request.chain:
        return
    if queue is None:
        request.chain.clear()
    else:
        # The chain's signatures as Celery keeps them in a message, the next one last.
        request.chain[-1]["options"]["queue"] = queue


def _add_submit(app: Celery, runtime: Callable[[], WorkerContext]) -> None:
    # Its result, which follows the job, says STARTED from here on; what stages do is in the record.
    @app.task(  # type: ignore[untyped-decorator]
        name=SUBMIT,
        bind=True,
        shared=False,
        throws=(JobError,),
        track_started=True,
        max_retries=None,
        Request="tasks.stages.submit_request:SubmitRequest",
    )
    def submit(self: Task, job: dict[str, Any]) -> dict[str, Any]:
        if newer_than_known(job) and runtime().newest_versions().get(SUBMIT_QUEUE, 0) > VERSION:
            # It waits in this worker for a moment, and then for whoever is next.
            pause_s = 0.0 if self.request.eta else runtime().backoff.delay_s(0)
            raise self.retry(countdown=pause_s)
        try:
            own = self.request.id
            job_id, _, admission = admit(with_id(job, own), runtime().state, own)
        except JobError as error:
            raise error.for_wire() from error
        runtime().dispatch()
        if admission == DispatchOutcome.WAITING:
            raise Ignore(f"job {job_id} goes on without this task, and has its result")
        if admission == DispatchOutcome.EXISTS:
            return {"job_id": job_id}
        # The chain takes this task's id, so that the sender's result follows the whole job.
        queue = runtime().state.get(job_id).gpu_queue
        replaced: dict[str, Any] = self.replace(job_chain(app, job_id, queue))
        return replaced
