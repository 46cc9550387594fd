"""Background threads that survive every exception, and a watch that notices one that ends.

A worker without one of its threads looks alive and is not: without renewals, for example, its jobs
go to other workers while it trains. So no round of a thread ends it, and if it ends all the same,
its worker drains and exits with an error, for its supervisor to restart it.
"""

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import TypeVar

import redis
from kombu.exceptions import OperationalError

T = TypeVar("T")
logger = logging.getLogger(__name__)

UNAVAILABLE = (redis.RedisError, OperationalError)
"""Errors of the broker's: they pass by themselves, and need no traceback."""

_LOG_EVERY_S = 60.0
# A round that fails at once must not keep a core busy.
_MIN_DELAY_AFTER_FAILURE_S = 1.0


class ThreadWatch:
    """Receives the failures of a worker's background threads.

    Args:
        drain: Makes the worker drain and exit.
    """

    def __init__(self, drain: Callable[[], None] = lambda: None) -> None:
        self.has_given_up = False
        """Whether the worker exits because of an error of its own."""
        self._drain = drain
        self._failures: Counter[str] = Counter()
        self._logged_at: dict[str, float] = {}
        self._lock = threading.Lock()

    def attempt(self, name: str, function: Callable[[], T]) -> T | None:
        """Call a function; return its result, or None if it raised an exception.

        The exception is logged at most once a minute for each name, and counted unless the broker
        is unavailable.
        """
        try:
            return function()
        except Exception as error:
            is_unavailable = isinstance(error, UNAVAILABLE)
            with self._lock:
                self._failures[name] += not is_unavailable
            now = time.monotonic()
            if now - self._logged_at.get(name, -_LOG_EVERY_S) >= _LOG_EVERY_S:
                self._logged_at[name] = now
                logger.error("%s failed: %r", name, error, exc_info=not is_unavailable)
            return None

    def take_failures(self) -> dict[str, int]:
        """Return the failures since the last call, by name."""
        with self._lock:
            failures, self._failures = dict(+self._failures), Counter()
        return failures

    def give_up(self, reason: str) -> None:
        """Let the worker drain and exit, once."""
        if not self.has_given_up:
            self.has_given_up = True
            logger.critical("%s: this worker drains and exits", reason)
            self._drain()


class PeriodicThread:
    """A daemon thread that calls a function again and again until it is stopped.

    Args:
        watch: Gets its failures and its end.
        name: The name of the thread.
        interval_s: Seconds between two calls.
        run_round: The function. Any exception costs this one call.
    """

    def __init__(
        self, watch: ThreadWatch, name: str, interval_s: float, run_round: Callable[[], object]
    ) -> None:
        self._watch, self._name = watch, name
        self._interval_s, self._run_round = interval_s, run_round
        self._stopped = threading.Event()

    def start(self) -> None:
        """Start the thread; the first call is immediate."""
        try:
            threading.Thread(target=self._run, name=self._name, daemon=True).start()
        except RuntimeError as error:  # the system has no more threads
            self._watch.give_up(f"the thread {self._name} cannot start: {error}")

    def stop(self) -> None:
        """Make no more calls."""
        self._stopped.set()

    def _run(self) -> None:
        try:
            while not self._stopped.is_set():
                is_done = self._watch.attempt(self._name, self._succeed)
                delay_s = self._interval_s
                self._stopped.wait(delay_s if is_done else max(delay_s, _MIN_DELAY_AFTER_FAILURE_S))
        finally:
            if not self._stopped.is_set():
                self._watch.give_up(f"the thread {self._name} ended")

    def _succeed(self) -> bool:
        self._run_round()
        return True
