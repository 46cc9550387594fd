"""Webhooks as a caller sees them: secrets of its tenant, and deliveries of its jobs."""

from datetime import datetime

from console.errors import ForbiddenError, InvalidRequestError, NotFoundError
from console.services.images.uploads import checked_tenant
from console.services.jobs.jobs import Jobs
from console.services.threads import in_thread
from console.views import View
from tasks.access.api_keys import Caller
from tasks.client import Client
from tasks.state.tenants.webhook_secrets import WebhookSecret
from tasks.state.webhook_deliveries import Delivery


class NewWebhookSecretView(View):
    """A new webhook secret."""

    id: str
    secret: str
    """`whsec_` and base64: what a library of standardwebhooks.com takes. It is not shown again."""
    created_at: datetime


class WebhookSecretsView(View):
    """Webhook secrets of a tenant."""

    secrets: tuple[WebhookSecret, ...]
    """Valid secrets, oldest first; each signs all deliveries."""


class DeliveriesView(View):
    """Deliveries of a job's webhook."""

    deliveries: tuple[Delivery, ...]
    """Deliveries, newest first."""


class JobWebhooks:
    """Secrets and deliveries; thread-safe. Another tenant's are answered like unknown ones.

    Args:
        client: The fleet's client.
        jobs: Decides which jobs a caller sees.
    """

    def __init__(self, client: Client, jobs: Jobs) -> None:
        self._client, self._jobs = client, jobs

    @in_thread
    def create_secret(self, caller: Caller, tenant: str | None) -> NewWebhookSecretView:
        """Create a secret of a tenant.

        Raises:
            ForbiddenError: The tenant is not the caller's.
            InvalidRequestError: An operator names no tenant, or none.
            WebhookSecretError: The tenant has two secrets.
        """
        owner = _owner(caller, tenant)
        entry, secret = self._client.create_webhook_secret(owner, caller.actor)
        return NewWebhookSecretView(id=entry.id, created_at=entry.created_at, secret=secret)

    @in_thread
    def secrets(self, caller: Caller, tenant: str | None) -> WebhookSecretsView:
        """List a tenant's secrets; see ``create_secret`` for errors."""
        entries = self._client.webhook_secrets.entries(_owner(caller, tenant))
        return WebhookSecretsView(secrets=tuple(entries))

    @in_thread
    def revoke_secret(self, caller: Caller, tenant: str | None, secret_id: str) -> None:
        """Revoke a secret; see ``create_secret`` for more errors.

        Raises:
            NotFoundError: The tenant has no such secret.
        """
        owner = _owner(caller, tenant)
        known = self._client.webhook_secrets.entries(owner)
        if secret_id not in [entry.id for entry in known]:
            raise NotFoundError("there is no such webhook secret")
        self._client.revoke_webhook_secret(owner, secret_id, caller.actor)

    @in_thread
    def deliveries(self, caller: Caller, job_id: str) -> DeliveriesView:
        """Return the deliveries of a job.

        Raises:
            UnknownJobError: The caller sees no job of this id.
        """
        return self._view(self._jobs.record(caller, job_id).id)

    @in_thread
    def redeliver(self, caller: Caller, job_id: str, sequence: int) -> DeliveriesView:
        """Deliver again; return the deliveries.

        Raises:
            UnknownJobError: The caller sees no job of this id.
            InvalidStateError: The job has no such delivery.
        """
        known_id = self._jobs.record(caller, job_id).id
        self._client.redeliver(known_id, sequence, caller.actor)
        return self._view(known_id)

    def _view(self, job_id: str) -> DeliveriesView:
        return DeliveriesView(deliveries=tuple(self._client.webhook_deliveries.log(job_id)))


def _owner(caller: Caller, tenant: str | None) -> str:
    """Return the tenant whose secrets a request is about."""
    if caller.tenant is None:
        if tenant is None:
            raise InvalidRequestError(
                "an operator's key names no tenant", "tenant", "add ?tenant=NAME to the address"
            )
        return checked_tenant(tenant)
    if tenant not in (None, caller.tenant):
        raise ForbiddenError("this key is for the webhooks of its own tenant only", "tenant")
    return caller.tenant
