"""Registration: the worker's entry in Redis, renewed with its leases while it lives."""

from collections.abc import Callable

from redis import Redis

from tasks.metrics import LEASE_LOSSES, LEASE_RENEWALS
from tasks.settings.settings import Settings
from tasks.state.counters import Counters
from tasks.state.workers import GpuStats, WorkerHeartbeat, WorkerInfo
from worker.policy import WorkerPolicy


class Registration(WorkerPolicy):
    """Registers the worker when it is ready and removes it when it stops.

    Args:
        client: A connection to the broker.
        settings: The process's settings.
        worker: The worker's name.
        info: The worker's capabilities.
        gpu_stats: Returns the GPU's newest statistics, without waiting for the driver.
    """

    def __init__(
        self,
        client: Redis,
        settings: Settings,
        worker: str,
        info: WorkerInfo,
        gpu_stats: Callable[[], GpuStats | None],
    ) -> None:
        ttl = settings.visibility_timeout * 2
        self._heartbeat = WorkerHeartbeat(client, worker, info, ttl, gpu_stats)
        self._counters = Counters(client, settings.job_ttl)

    def on_ready(self) -> None:
        """Register the worker."""
        self._heartbeat.renew()

    def on_stopped(self) -> None:
        """Remove the worker's entry."""
        self._heartbeat.deregister()

    def renew(self, held: int, lost: int) -> None:
        """Renew the entry, and count a round of lease renewals.

        Args:
            held: The messages whose leases were renewed.
            lost: The messages whose leases were lost.
        """
        self._heartbeat.renew()
        self._counters.add(LEASE_RENEWALS.one(by=held) | LEASE_LOSSES.one(by=lost))

    def set_quarantined(self, reason: str | None) -> None:
        """Publish why the worker takes no messages; None when it takes them again."""
        self._heartbeat.set_quarantine(reason)
