"""The end of a worker that has nothing to do, where its machine costs money while it waits."""

import logging
import time
from collections.abc import Callable
from typing import Any

from celery import bootsteps
from celery.worker.state import all_total_count

logger = logging.getLogger(__name__)

_LOOK_EVERY_S = 1.0


class IdleShutdown(bootsteps.StartStopStep):  # type: ignore[misc]
    """Ends a worker that has held no message for a while.

    It looks from the worker's main loop, which is also where messages come in, and only asks for
    the end: a message that comes in after that goes back to its queue, as in every other one. While
    the broker is away the loop does not turn, and the worker stays.
    """

    idle_s: float
    end: Callable[[], None]

    requires = ("celery.worker.consumer.tasks:Tasks",)

    @classmethod
    def after(cls, idle_s: float, end: Callable[[], None]) -> type["IdleShutdown"]:
        """The step.

        Args:
            idle_s: Seconds without a message.
            end: Asks the worker to end.
        """
        return type(cls.__name__, (cls,), {"idle_s": idle_s, "end": staticmethod(end)})

    def start(self, consumer: Any) -> None:
        """Wait from now on; after each reconnection, too."""
        self._qos = consumer.task_consumer.channel.qos
        self._taken, self._idle_since = all_total_count[0], time.monotonic()
        self._look_again = consumer.timer.call_repeatedly(_LOOK_EVERY_S, self._look)

    def stop(self, consumer: Any) -> None:
        """The loop stops, here or to reconnect."""
        self._look_again.cancel()

    def _look(self) -> None:
        held = any(tag not in self._qos._dirty for tag in tuple(self._qos._delivered))
        if held or all_total_count[0] != self._taken:
            self._taken, self._idle_since = all_total_count[0], time.monotonic()
        elif time.monotonic() - self._idle_since >= self.idle_s:
            logger.info("nothing to do for %g s: the worker ends", self.idle_s)
            self._look_again.cancel()
            self.end()
