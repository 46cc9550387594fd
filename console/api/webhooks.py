"""Webhooks of jobs: the tenants' secrets, and deliveries."""

from typing import Annotated

from fastapi import APIRouter, Path, Query

from console.api.access import JobReader, JobWriter, ServicesDep, WebhookOwner
from console.api.openapi import errors
from console.services.jobs.webhooks import DeliveriesView, NewWebhookSecretView, WebhookSecretsView

router = APIRouter(tags=["webhooks"])

Tenant = Annotated[
    str | None,
    Query(max_length=100, description="The owner of the secrets; operators must name one."),
]
Sequence = Annotated[int, Path(ge=1, le=2**53, description="Number of the delivery.")]


@router.post("/webhook-secrets", status_code=201, responses=errors(409))
async def create_webhook_secret(
    caller: WebhookOwner, services: ServicesDep, tenant: Tenant = None
) -> NewWebhookSecretView:
    """Create a secret that signs webhooks. It is shown once; two are valid at a time."""
    return await services.webhooks.create_secret(caller, tenant)


@router.get("/webhook-secrets")
async def list_webhook_secrets(
    caller: WebhookOwner, services: ServicesDep, tenant: Tenant = None
) -> WebhookSecretsView:
    """List the secrets that sign webhooks, without the secrets themselves."""
    return await services.webhooks.secrets(caller, tenant)


@router.delete("/webhook-secrets/{secret_id}", status_code=204)
async def revoke_webhook_secret(
    caller: WebhookOwner, services: ServicesDep, secret_id: str, tenant: Tenant = None
) -> None:
    """Revoke a secret. Without any, deliveries wait until there is one, for three days at most."""
    await services.webhooks.revoke_secret(caller, tenant, secret_id)


@router.get("/jobs/{job_id}/deliveries")
async def list_deliveries(caller: JobReader, services: ServicesDep, job_id: str) -> DeliveriesView:
    """List the deliveries of a job's webhook, newest first; at most 200 besides pending ones."""
    return await services.webhooks.deliveries(caller, job_id)


@router.post("/jobs/{job_id}/deliveries/{sequence}:redeliver", responses=errors(409))
async def redeliver_webhook(
    caller: JobWriter, services: ServicesDep, job_id: str, sequence: Sequence
) -> DeliveriesView:
    """Deliver again, now and with all retries, under the same `webhook-id`."""
    return await services.webhooks.redeliver(caller, job_id, sequence)
