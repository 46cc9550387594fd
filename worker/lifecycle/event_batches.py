"""Task events, which Flower shows, go out in batches: each by itself costs more than its task.

Knows nothing of jobs; their own events are in their records.
"""

from typing import Any

from celery import bootsteps

# Too short for a person to see.
_BATCH_S = 0.1


class EventBatches(bootsteps.StartStopStep):  # type: ignore[misc]
    """Holds a worker's task events back for a moment, so that the next ones go with them."""

    requires = ("celery.worker.consumer.events:Events",)

    def start(self, consumer: Any) -> None:
        """Take over the dispatcher, a new one after each reconnection."""
        self._dispatcher, self._timer, self._due = consumer.event_dispatcher, consumer.timer, False
        self._dispatcher.on_send_buffered = self._flush_soon

    def shutdown(self, consumer: Any) -> None:
        """Tell what there is."""
        self._dispatcher.flush()

    def _flush_soon(self) -> None:
        if not self._due:
            self._due = True
            self._timer.call_after(_BATCH_S, self._flush)

    def _flush(self) -> None:
        self._due = False
        self._dispatcher.flush()
