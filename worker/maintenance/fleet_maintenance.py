"""Fleet maintenance: what one elected worker at a time does for the whole fleet."""

from collections.abc import Callable

from redis import Redis

from tasks.metrics import REDELIVERED_MESSAGES, WEBHOOKS
from tasks.settings.settings import Settings
from tasks.state.control import JobControl
from tasks.state.counters import Counters
from tasks.state.job_store import JobStore
from tasks.state.keys import WEBHOOKS_LEASE
from tasks.state.record import JobSummary
from tasks.state.tenant_queues import TenantQueues
from tasks.state.workers import live_workers
from worker.kombu_redis.redelivery import Redelivery
from worker.kombu_redis.transport import Keys
from worker.maintenance.leader import LeaderLoop
from worker.maintenance.reconciler import Reconciler
from worker.maintenance.webhooks import Webhooks
from worker.policy import WorkerPolicy


class FleetMaintenance(WorkerPolicy):
    """Takes part in the election and, while it leads, runs the maintenance jobs in a thread.

    Args:
        client: A connection to the broker.
        settings: The process's settings.
        keys: The broker keys of the message transport.
        enqueue: Sends a job's remaining stages.
    """

    def __init__(
        self,
        client: Redis,
        settings: Settings,
        keys: Keys,
        enqueue: Callable[[JobSummary], None],
    ) -> None:
        self._client, self._settings, self._enqueue = client, settings, enqueue
        self._timeout = settings.visibility_timeout
        self._counters = Counters(client, settings.job_ttl)
        self._queues = TenantQueues(client, settings.job_ttl, enqueue)
        self._redelivery = Redelivery(client, self._timeout, keys)
        self._keys = keys

    def on_ready(self) -> None:
        """Join both elections: webhooks have their own, since their receivers may be slow."""
        self._maintenance_loop().start()
        self._webhook_loop().start()

    def _maintenance_loop(self) -> LeaderLoop:
        control = JobControl(
            self._client, self._settings.job_ttl, unacked_index=self._keys.unacked_index
        )
        reconciler = Reconciler(self._client, control, self._enqueue, self._timeout, self._keys)
        jobs = (
            self._update_fleet,
            self._queues.dispatch,
            reconciler.send_retries,
            reconciler.reconcile_if_due,
            control.renew_keys,
        )
        return LeaderLoop(self._client, self._timeout, jobs, redeliver=self._redeliver)

    def _webhook_loop(self) -> LeaderLoop:
        webhooks = Webhooks(
            self._client,
            JobStore(self._client, self._settings.job_ttl),
            self._settings.webhook_url,
            self._settings.webhook_signing_secrets(),
            lambda result: self._counters.add(WEBHOOKS.one(result)),
        )
        return LeaderLoop(self._client, self._timeout, [webhooks.deliver_due], lease=WEBHOOKS_LEASE)

    def _update_fleet(self) -> None:
        """Publish the fleet's capacity and the tenants' shares, which dispatch goes by."""
        workers = live_workers(self._client).values()
        healthy = [worker for worker in workers if worker.quarantined is None]
        self._queues.publish_fleet(healthy, self._settings.shares_by_tenant(), self._timeout * 2)

    def _redeliver(self) -> None:
        redelivered = self._redelivery.redeliver_expired()
        self._counters.add(REDELIVERED_MESSAGES.one(by=len(redelivered)))
