"""Registration: the worker's entry in Redis, renewed with its leases while it lives."""

import logging
import os
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import psutil
from redis import Redis, RedisError

from tasks.clock import MAX_CLOCK_OFFSET_S, clock_offset_s
from tasks.metrics import LEASE_LOSSES, LEASE_RENEWALS, THREAD_FAILURES
from tasks.settings.settings import Settings
from tasks.state.counters import Counters
from tasks.state.keys import WORKER_PREFIX
from tasks.state.workers import GpuStats, WorkerHeartbeat, WorkerInfo
from worker.errors import WorkerNameTakenError
from worker.periodic import ThreadWatch
from worker.policy import WorkerPolicy

logger = logging.getLogger(__name__)

_CHECK_EVERY_S = 0.2
_BOOT = Path("/proc/sys/kernel/random/boot_id")
_PIDS = Path("/proc/self/ns/pid")


class Registration(WorkerPolicy):
    """Registers the worker before it starts and removes it when it stops.

    Args:
        client: A connection to the broker.
        settings: The process's settings.
        worker: The worker's name.
        info: The worker's capabilities.
        gpu_stats: Returns the GPU's newest statistics, without waiting for the driver.
        watch: Has the failures of threads. It ends a worker that was frozen or cut off for so long
            that another one has taken its name.
    """

    def __init__(
        self,
        client: Redis,
        settings: Settings,
        worker: str,
        info: WorkerInfo,
        gpu_stats: Callable[[], GpuStats | None],
        watch: ThreadWatch,
    ) -> None:
        ttl = settings.visibility_timeout * 2
        info = info.model_copy(update={"instance": new_instance()})
        self._heartbeat = WorkerHeartbeat(client, worker, info, ttl, gpu_stats)
        self._counters = Counters(client, settings.job_ttl)
        self._redis, self._worker = client, worker
        # A live worker renews its entry twice in this time.
        self._silence_s = settings.visibility_timeout.total_seconds() / 2
        self._watch = watch

    def claim_name(self) -> None:
        """Register the worker, unless another live one has its name.

        An unavailable broker cannot be asked: then the first renewal finds out.

        Raises:
            WorkerNameTakenError: Another live worker has the name.
        """
        try:
            other = self._heartbeat.renew()
            if other is not None:
                if not is_gone(other) and self._is_renewed():
                    raise WorkerNameTakenError(self._worker)
                if self._heartbeat.renew(replaces=other) is not None:
                    raise WorkerNameTakenError(self._worker)
            offset_s = clock_offset_s(self._redis)
        except RedisError as error:
            logger.warning("cannot register this worker yet: %s", error)
            return
        if abs(offset_s) > MAX_CLOCK_OFFSET_S:
            logger.error(
                "this machine's clock is %.0f s %s the broker's: run a time service",
                abs(offset_s),
                "ahead of" if offset_s > 0 else "behind",
            )

    def on_ready(self) -> None:
        """Register the worker, if the broker was unavailable before."""
        self._renew()

    def on_stopped(self) -> None:
        """Remove the worker's entry."""
        self._heartbeat.deregister()

    def renew(self, held: int, lost: int) -> None:
        """Renew the entry, and count a round of lease renewals.

        Args:
            held: The messages whose leases were renewed.
            lost: The messages whose leases were lost.
        """
        self._renew()
        counts = LEASE_RENEWALS.one(by=held) | LEASE_LOSSES.one(by=lost)
        for name, failures in self._watch.take_failures().items():
            counts |= THREAD_FAILURES.one(name, by=failures)
        self._counters.add(counts)

    def set_quarantined(self, reason: str | None) -> None:
        """Publish why the worker takes no messages; None when it takes them again."""
        self._heartbeat.set_quarantine(reason)

    def _renew(self) -> None:
        if self._heartbeat.renew() is not None:
            self._watch.give_up(f"another worker has taken the name {self._worker}")

    def _is_renewed(self) -> bool:
        """Wait and see whether a live worker renews the entry of this name."""
        logger.warning("a worker %s is registered: checking whether it lives", self._worker)
        key, deadline = f"{WORKER_PREFIX}{self._worker}", time.monotonic() + self._silence_s
        left_ms = self._redis.pttl(key)
        while time.monotonic() < deadline:
            time.sleep(_CHECK_EVERY_S)
            before_ms, left_ms = left_ms, self._redis.pttl(key)
            if left_ms > before_ms:
                return True
        return False


def new_instance() -> str:
    """Return a name of this process that no other process has, on any machine."""
    return f"{_machine()}:{os.getpid()}:{uuid.uuid4().hex[:8]}"


def is_gone(instance: str) -> bool:
    """Return whether an instance is a process of this machine that has ended.

    In another container, process ids mean others: nothing is known of such an instance.
    """
    machine, _, rest = instance.partition(":")
    pid = rest.partition(":")[0]
    if machine != _machine() or not pid.isdecimal():
        return False
    try:
        return psutil.Process(int(pid)).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def _machine() -> str:
    if not _BOOT.exists():  # not Linux
        return f"{uuid.getnode():x}"
    return f"{_BOOT.read_text('ascii').strip()}-{_PIDS.stat().st_ino}"
