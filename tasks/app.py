"""The Celery application: the settings that keep long jobs safe, without any task.

A process that only sends needs no more; ``tasks/stages/celery_tasks.py`` adds a worker's tasks.
"""

from typing import Any

from celery import Celery
from kombu.entity import Queue
from redis.backoff import NoBackoff
from redis.retry import Retry

from routing.queues import ALL_QUEUES, CPU_QUEUE
from tasks.broker_url import BrokerUrl
from tasks.settings.settings import Settings


def make_app(settings: Settings, broker_url: str) -> Celery:
    """Return the application of a process that sends messages.

    Args:
        settings: The process's settings.
        broker_url: The broker, which also keeps results.
    """
    broker = BrokerUrl.parse(broker_url)
    url = broker.for_celery()
    app = Celery("training", broker=url, backend=url, set_as_current=False)
    app.conf.update(_configuration(settings, broker))
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
        # A broker that is unavailable when a stage ends must not lose the next stage's message.
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
