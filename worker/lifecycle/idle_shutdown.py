"""Idle shutdown: a worker without work stops, for machines that cost money while they wait."""

import logging
import time
from collections.abc import Callable
from typing import Any

from celery.worker.state import all_total_count

from worker.policy import WorkerPolicy

logger = logging.getLogger(__name__)

_CHECK_EVERY_S = 1.0


class IdleShutdown(WorkerPolicy):
    """Stops a worker that has held no message for a while.

    The check runs in the worker's main loop, where messages also arrive, and only requests a
    shutdown: a message that arrives after it returns to its queue, as in any other shutdown. While
    the broker is unavailable the loop does not turn, and the worker keeps running.

    Args:
        idle_s: Seconds without a message.
        shut_down: Requests the worker's shutdown.
    """

    def __init__(self, idle_s: float, shut_down: Callable[[], None]) -> None:
        self._idle_s, self._shut_down = idle_s, shut_down

    def on_consumer_start(self, consumer: Any) -> None:
        """Count idle time from now on."""
        self._qos = consumer.task_consumer.channel.qos
        self._received, self._idle_since = all_total_count[0], time.monotonic()
        self._check_timer = consumer.timer.call_repeatedly(_CHECK_EVERY_S, self._check)

    def on_consumer_stop(self, consumer: Any) -> None:
        """Stop counting."""
        self._check_timer.cancel()

    def _check(self) -> None:
        is_held = any(tag not in self._qos._dirty for tag in tuple(self._qos._delivered))
        if is_held or all_total_count[0] != self._received:
            self._received, self._idle_since = all_total_count[0], time.monotonic()
        elif time.monotonic() - self._idle_since >= self._idle_s:
            logger.info("no message for %g s: the worker stops", self._idle_s)
            self._check_timer.cancel()
            self._shut_down()
