"""Batches of Celery's task events, which Flower shows: each one alone costs more than its task.

Job events are separate: they are in the job's record.
"""

from contextlib import suppress
from typing import Any

from worker.periodic import UNAVAILABLE
from worker.policy import WorkerPolicy

# Too short for a person to notice.
_BATCH_S = 0.1


class EventBatches(WorkerPolicy):
    """Holds a worker's task events for a moment, so that the next ones share their message."""

    def __init__(self) -> None:
        self._dispatcher: Any = None

    def on_consumer_start(self, consumer: Any) -> None:
        """Batch the events of this dispatcher, a new one after each reconnection."""
        self._dispatcher, self._timer = consumer.event_dispatcher, consumer.timer
        self._is_scheduled = False
        self._dispatcher.on_send_buffered = self._schedule

    def on_consumer_shutdown(self, consumer: Any) -> None:
        """Send the last events, if the worker has been connected at all."""
        if self._dispatcher is not None:
            self._flush()

    def _schedule(self) -> None:
        if not self._is_scheduled:
            self._is_scheduled = True
            self._timer.call_after(_BATCH_S, self._flush)

    def _flush(self) -> None:
        self._is_scheduled = False
        with suppress(*UNAVAILABLE):  # the next batch contains them too
            self._dispatcher.flush()
