from datetime import timedelta
from typing import Any

from redis import Redis

from tasks.app import make_app
from tasks.settings.settings import Settings
from tasks.stages.submit import submit
from tasks.state.control import JobControl
from tasks.state.job_store import JobStore
from tasks.state.tenants.webhook_secrets import WebhookSecrets
from tasks.state.webhook_deliveries import WebhookDeliveries
from tests.waiting import wait_until
from worker.kombu_redis.transport import Keys
from worker.maintenance.fleet_maintenance import FleetMaintenance
from worker.periodic import ThreadWatch

DAY = timedelta(days=1)


def test_the_leader_renews_the_keys_of_paused_jobs(
    state: JobStore, redis_client: Redis, broker_url: str, job_document: dict[str, Any]
) -> None:
    job_id = submit(job_document, state, "result").job_id
    JobControl(redis_client, timedelta(hours=1)).pause(job_id)
    entry = f"{job_id} default"
    redis_client.zadd("training:jobs:renewals", {entry: 1.0}, xx=True)
    settings = Settings(job_ttl=DAY)
    app = make_app(settings, broker_url)
    maintenance = FleetMaintenance(app, redis_client, settings, Keys.of({}), ThreadWatch())
    assert maintenance._maintenance_loop().run_once()
    keys = f"training:job:{job_id}", f"training:job:{job_id}:events", "training:jobs"
    assert all(redis_client.ttl(key) > 3600 for key in keys)


def test_the_leader_delivers_webhooks_and_stores_results(
    state: JobStore, redis_client: Redis, broker_url: str, job_document: dict[str, Any]
) -> None:
    WebhookSecrets(redis_client).create("default")
    webhook = {"url": "https://localhost:1/", "events": ["accepted", "cancelled"]}
    job_id = submit({**job_document, "webhook": webhook}, state, "result").job_id
    JobControl(redis_client, timedelta(hours=1)).cancel(job_id)
    settings = Settings(job_ttl=DAY)
    app = make_app(settings, broker_url)
    maintenance = FleetMaintenance(app, redis_client, settings, Keys.of({}), ThreadWatch())
    assert maintenance._webhook_loop().run_once()
    deliveries = WebhookDeliveries(redis_client, DAY)
    wait_until(
        lambda: all(delivery.reason for delivery in deliveries.log(job_id)),
        timeout_s=20,
        description="each delivery was tried",
    )
    assert {delivery.status for delivery in deliveries.log(job_id)} == {"pending"}
    assert maintenance._maintenance_loop().run_once()
    assert app.AsyncResult("result").state == "FAILURE"
