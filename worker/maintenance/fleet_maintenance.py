"""Fleet maintenance: what one elected worker at a time does for the whole fleet."""

from collections.abc import Mapping
from datetime import timedelta

from celery import Celery
from redis import Redis

from tasks.deletion import DeletedFiles
from tasks.metrics import JOB_WEBHOOKS, REDELIVERED_MESSAGES, WEBHOOKS
from tasks.settings.settings import Settings
from tasks.stages.results import UnstoredResults
from tasks.state.control import JobControl
from tasks.state.counters import Counters
from tasks.state.deletions import Deletions
from tasks.state.job_store import JobStore
from tasks.state.keys import AUDIT_LEASE, MAINTENANCE_LEASE, REDELIVERY_LEASE, WEBHOOKS_LEASE
from tasks.state.tenants.quotas import Quotas
from tasks.state.tenants.tenant_queues import TenantQueues
from tasks.state.webhook_deliveries import WebhookDeliveries
from tasks.state.workers import live_workers
from tasks.store import Store
from worker.kombu_redis.redelivery import Redelivery
from worker.kombu_redis.transport import Keys
from worker.maintenance.audit_export import AuditExport
from worker.maintenance.job_webhooks import JobWebhooks
from worker.maintenance.leader import LeaderLoop, MaintenanceJob
from worker.maintenance.reconciler import Reconciler
from worker.maintenance.webhooks import Webhooks
from worker.message_guard import MessageGuard, unreadable_messages
from worker.periodic import ThreadWatch
from worker.policy import WorkerPolicy


class FleetMaintenance(WorkerPolicy):
    """Takes part in the election and, while it leads, runs the maintenance jobs in a thread.

    Args:
        app: The worker's application.
        client: A connection to the broker.
        settings: The process's settings.
        keys: The broker keys of the message transport.
        watch: Watches the threads.
    """

    def __init__(
        self,
        app: Celery,
        client: Redis,
        settings: Settings,
        keys: Keys,
        watch: ThreadWatch,
    ) -> None:
        self._app, self._client, self._settings = app, client, settings
        self._results = UnstoredResults(client, app)
        self._watch = watch
        self._timeout = settings.visibility_timeout
        self._counters = Counters(client, settings.job_ttl)
        self._queues = TenantQueues(client, settings.job_ttl)
        self._quotas = Quotas(client)
        self._unreadable = unreadable_messages(client, settings.job_ttl)
        self._redelivery = Redelivery(
            client, self._timeout, keys, self._unreadable, MessageGuard(client).read
        )
        self._keys = keys

    def on_ready(self) -> None:
        """Join the elections. What is slow or fails in one loop does not delay the others."""
        self._maintenance_loop().start()
        self._redelivery_loop().start()
        self._webhook_loop().start()
        self._store_loop().start()

    def _maintenance_loop(self) -> LeaderLoop:
        control = JobControl(
            self._client, self._settings.job_ttl, unacked_index=self._keys.unacked_index
        )
        reconciler = Reconciler(
            self._client, control, self._timeout, self._keys, self._unreadable, self._app
        )
        jobs: dict[str, MaintenanceJob] = {
            "fleet": self._update_fleet,
            "dispatch": self._queues.dispatch,
            "retries": reconciler.send_retries,
            "reconciler": reconciler.reconcile_if_due,
            "expiry": control.renew_keys,
            "results": self._results.store,
            "quotas": self._quotas.renew,
        }
        return self._loop(MAINTENANCE_LEASE, jobs)

    def _redelivery_loop(self) -> LeaderLoop:
        # After an outage live workers have a whole timeout to renew their leases, as before it.
        jobs = {"redelivery": self._redeliver}
        return self._loop(REDELIVERY_LEASE, jobs, after_outage=self._timeout)

    def _webhook_loop(self) -> LeaderLoop:
        webhooks = Webhooks(
            self._client,
            JobStore(self._client, self._settings.job_ttl),
            self._settings.webhook_url,
            self._settings.webhook_signing_secrets(),
            lambda result: self._counters.add(WEBHOOKS.one(result)),
        )
        job_webhooks = JobWebhooks(
            self._client,
            WebhookDeliveries(self._client, self._settings.job_ttl),
            self._settings.allowed_webhook_hosts,
            self._settings.webhook_rate_limit,
            lambda result: self._counters.add(JOB_WEBHOOKS.one(result)),
        )
        jobs = {"webhooks": webhooks.deliver_due, "job_webhooks": job_webhooks.deliver_due}
        return self._loop(WEBHOOKS_LEASE, jobs)

    def _store_loop(self) -> LeaderLoop:
        settings = self._settings
        store = Store(settings.resolved_store_url)
        export = AuditExport(self._client, store, settings.audit_retention)
        deletions = Deletions(self._client, settings.job_ttl)
        files = DeletedFiles(store, self._client, deletions)
        jobs = {"audit": export.export_if_due, "deletions": files.remove_due}
        return self._loop(AUDIT_LEASE, jobs)

    def _loop(
        self,
        lease: str,
        jobs: Mapping[str, MaintenanceJob],
        *,
        after_outage: timedelta = timedelta(0),
    ) -> LeaderLoop:
        return LeaderLoop(
            self._client,
            self._timeout,
            jobs,
            lease=lease,
            watch=self._watch,
            after_outage=after_outage,
        )

    def _update_fleet(self) -> None:
        """Publish the fleet's capacity and the tenants' shares, which dispatch goes by."""
        workers = live_workers(self._client).values()
        healthy = [worker for worker in workers if worker.quarantined is None]
        self._queues.publish_fleet(healthy, self._settings.shares_by_tenant(), self._timeout * 2)

    def _redeliver(self) -> None:
        redelivered = self._redelivery.redeliver_expired()
        self._counters.add(REDELIVERED_MESSAGES.one(by=len(redelivered)))
