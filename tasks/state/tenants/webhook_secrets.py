"""Webhook secrets of tenants: they sign the deliveries of jobs' own webhooks.

A signature needs the secret itself, so that the broker keeps it as it is, under a prefix of its own
that only workers may read, and consoles write (``deploy/valkey/users.acl.in``).
"""

import base64
import secrets
from datetime import UTC, datetime
from typing import cast

from redis import Redis

from tasks.clock import broker_time
from tasks.errors import ErrorCode, JobError
from tasks.state import scripts
from tasks.state.keys import WEBHOOK_SECRETS_PREFIX
from tasks.strict_model import StrictModel

# Both sign, so that a receiver may change from one to the other.
_MAX_SECRETS = 2
# As the specification recommends: 24 to 64.
_SECRET_BYTES = 32


class WebhookSecretError(JobError):
    """A tenant's webhook secrets do not allow the request."""

    def __init__(self, message: str) -> None:
        super().__init__(message, ErrorCode.INVALID_STATE)


class WebhookSecret(StrictModel):
    """A webhook secret, without the secret."""

    id: str
    created_at: datetime


class WebhookSecrets:
    """The webhook secrets of all tenants.

    Args:
        client: A connection to the broker that decodes responses.
    """

    def __init__(self, client: Redis) -> None:
        self._redis = client

    def create(self, tenant: str) -> tuple[WebhookSecret, str]:
        """Create a secret beside the one that a tenant may have.

        Returns:
            The secret's entry, and the secret, which is not shown again.

        Raises:
            WebhookSecretError: The tenant has two.
        """
        secret = f"whsec_{base64.b64encode(secrets.token_bytes(_SECRET_BYTES)).decode()}"
        created_at = datetime.fromtimestamp(round(broker_time(self._redis), 3), UTC)
        entry = WebhookSecret(id=secrets.token_hex(4), created_at=created_at)
        is_created = scripts.create_webhook_secret(
            self._redis,
            secrets_key=f"{WEBHOOK_SECRETS_PREFIX}{tenant}",
            secret_id=entry.id,
            secret=f"{created_at.isoformat()} {secret}",
            maximum=_MAX_SECRETS,
        )
        if not is_created:
            raise WebhookSecretError(
                f"tenant {tenant} has {_MAX_SECRETS} webhook secrets; revoke the older one first"
            )
        return entry, secret

    def entries(self, tenant: str) -> list[WebhookSecret]:
        """Return a tenant's secrets, the oldest first."""
        entries = [
            WebhookSecret(id=secret_id, created_at=datetime.fromisoformat(text.partition(" ")[0]))
            for secret_id, text in self._stored(tenant).items()
        ]
        return sorted(entries, key=lambda entry: entry.created_at)

    def revoke(self, tenant: str, secret_id: str) -> None:
        """Revoke a secret; deliveries are not signed with it from now on.

        Raises:
            WebhookSecretError: The tenant has no such secret.
        """
        if not self._redis.hdel(f"{WEBHOOK_SECRETS_PREFIX}{tenant}", secret_id):
            raise WebhookSecretError(f"tenant {tenant} has no webhook secret {secret_id}")

    def signing(self, tenant: str) -> list[str]:
        """Return the secrets that sign a tenant's deliveries."""
        return [text.partition(" ")[2] for text in self._stored(tenant).values()]

    def _stored(self, tenant: str) -> dict[str, str]:
        return cast("dict[str, str]", self._redis.hgetall(f"{WEBHOOK_SECRETS_PREFIX}{tenant}"))
