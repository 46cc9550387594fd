"""The Celery application: the settings that keep long jobs safe, without any task.

A process that only sends needs no more; ``tasks/stages/celery_tasks.py`` adds a worker's tasks.
"""

from collections.abc import Callable
from typing import Any

from celery import Celery
from kombu.entity import Queue
from redis.backoff import NoBackoff
from redis.retry import Retry

from routing.queues import ALL_QUEUES, CPU_QUEUE
from tasks.settings.settings import Settings
from tasks.state.availability import raise_refusals
from tasks.state.broker_url import BrokerUrl


def make_app(
    settings: Settings, broker_url: str, draining: Callable[[], bool] | None = None
) -> Celery:
    """Return the application of a process that sends messages.

    Args:
        settings: The process's settings.
        broker_url: The broker, which also keeps results.
        draining: Whether this process shuts down: until then it repeats what an unavailable broker
            did not take. None gives up within seconds.
    """
    raise_refusals()
    broker = BrokerUrl.parse(broker_url)
    url = broker.for_celery()
    app = Celery("training", broker=url, backend=url, set_as_current=False)
    app.conf.update(_configuration(settings, broker))
    app.conf.task_publish_retry_policy = _publish_policy(draining)
    return app


def _configuration(settings: Settings, broker: BrokerUrl) -> dict[str, Any]:
    options: dict[str, Any] = {}
    if broker.master is not None:
        sentinels = {**broker.sentinel_options, "retry": Retry(NoBackoff(), 0)}
        options = {"master_name": broker.master, "sentinel_kwargs": sentinels}
    return {
        # JSON only: unpickling a message runs whatever program its sender put there.
        "accept_content": ["json"],
        "task_serializer": "json",
        "result_serializer": "json",
        "result_expires": settings.job_ttl,
        # Late acknowledgement, one message at a time: a lost worker loses no message, and no
        # message waits behind a busy worker while another one is idle.
        "task_acks_late": True,
        "task_reject_on_worker_lost": True,
        "worker_prefetch_multiplier": 1,
        "worker_concurrency": 1,
        "worker_pool": "prefork",
        # The trainer process frees its memory when it ends; the pool's child only waits for it.
        "worker_max_tasks_per_child": None,
        "worker_hijack_root_logger": False,
        "worker_cancel_long_running_tasks_on_connection_loss": False,
        "worker_send_task_events": True,
        "task_create_missing_queues": False,
        "task_default_queue": CPU_QUEUE,
        "task_queues": [Queue(name, routing_key=name) for name in ALL_QUEUES],  # type: ignore[no-untyped-call]
        "result_backend_always_retry": True,
        "broker_connection_retry_on_startup": True,
        "broker_connection_max_retries": None,
        "broker_transport_options": {
            "visibility_timeout": settings.visibility_timeout.total_seconds(),
            # A network that drops packets silently is noticed.
            "socket_keepalive": True,
            "socket_timeout": 15,
            "health_check_interval": 10,
            **options,
        },
        "result_backend_transport_options": options,
        "broker_use_ssl": broker.tls_options or None,
        "redis_backend_use_ssl": broker.tls_options or None,
    }


def _publish_policy(draining: Callable[[], bool] | None) -> dict[str, Any]:
    intervals = {"interval_start": 0.2, "interval_step": 0.5, "interval_max": 5}
    if draining is None:
        # The reconciler sends what this process gives up.
        return {**intervals, "max_retries": 3}

    def give_up_when_draining(error: Exception, interval_s: float) -> None:
        if draining():
            raise error

    # The message of a job's next stage must not be lost.
    return {**intervals, "max_retries": 300, "errback": give_up_when_draining}
