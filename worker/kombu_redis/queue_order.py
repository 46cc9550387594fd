"""The order in which a worker asks its queues for the next message."""

from kombu.utils.scheduling import priority_cycle

from routing.queues import SUBMIT_QUEUE

QUEUE_ORDER = f"{__name__}:QueueOrder"
"""The transport option ``queue_order_strategy`` of a worker."""

MAX_SUBMITS_IN_A_ROW = 16
"""Submits between two stages. A submit takes some 15 ms, a stage seconds to hours.

With more, a burst of submits delays the stages of everybody; with less, a tenant whose submit comes
after a burst waits for more stages of other tenants before its job is recorded.
"""


class QueueOrder(priority_cycle):
    """The order in which the worker lists its queues, with ``submit`` before and behind them.

    ``submit`` comes first until ``MAX_SUBMITS_IN_A_ROW`` of its messages were delivered in a row,
    and then last until a stage was delivered: neither waits for the end of the other.
    """

    def __init__(self, queues: list[str] | None = None) -> None:
        super().__init__(queues)  # type: ignore[no-untyped-call]
        self._submits_in_a_row = 0

    def consume(self, n: int) -> list[str]:
        """Return the first ``n`` queues, in the order in which the broker looks at them."""
        submits = [queue for queue in self.items if queue == SUBMIT_QUEUE]
        others = [queue for queue in self.items if queue != SUBMIT_QUEUE]
        first = self._submits_in_a_row < MAX_SUBMITS_IN_A_ROW
        return [*submits, *others][:n] if first else [*others, *submits][:n]

    def rotate(self, last_used: str) -> None:
        """Take note of the queue that delivered a message."""
        self._submits_in_a_row = self._submits_in_a_row + 1 if last_used == SUBMIT_QUEUE else 0
