"""One attempt to deliver a webhook, as standardwebhooks.com has it, and when the next is due."""

import asyncio
import logging
import random
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import httpcore2
import httpx2
from standardwebhooks import Webhook

from tasks.data.download.ssrf import AddressError, AsyncSsrfGuard

logger = logging.getLogger(__name__)

# The delays between deliveries that the specification recommends; about three days in all.
_DELAYS_S = (5, 300, 1800, 7200, 18000, 36000, 50400, 72000, 86400)
# From the connection to the end of the answer, however slowly the receiver sends it.
_DEADLINE_S = 15.0
_MAX_BODY_BYTES = 4096
CLAIM_S = 60
"""Longer than a delivery takes: no other worker begins one meanwhile."""


@dataclass(frozen=True)
class Answer:
    """A receiver's answer.

    Attributes:
        problem: Why the webhook is not delivered; None if the receiver accepted it.
        retry_after_s: The delay that the receiver asks for.
        is_final: Whether the receiver wants no more webhooks.
    """

    problem: str | None = None
    retry_after_s: float | None = None
    is_final: bool = False

    def next_delay_s(self, attempts: int) -> float | None:
        """Return the seconds until the next attempt after N; None if there is none."""
        if self.is_final or attempts > len(_DELAYS_S):
            return None
        return self.retry_after_s or _DELAYS_S[attempts - 1] * random.uniform(0.9, 1.1)


class WebhookSender:
    """Sends webhooks; thread-safe.

    Args:
        hosts: Receivers may only have public addresses, but for these hosts; None connects to any
            address, for the operator's own receiver.
    """

    def __init__(self, hosts: frozenset[str] | None = None) -> None:
        self._hosts = hosts
        self._tls = httpx2.create_ssl_context()

    def send(
        self, url: str, message_id: str, sent_at: float, body: str, secrets: Sequence[str]
    ) -> Answer:
        """Send a webhook once.

        Args:
            url: The receiver.
            message_id: The same for every attempt.
            sent_at: The broker's time; receivers refuse a wrong one.
            body: The body, JSON.
            secrets: Each signs, so that the receiver can rotate them.
        """
        headers = _headers(message_id, sent_at, body, secrets)
        try:
            return asyncio.run(self._post(url, body, headers))
        except AddressError:  # its message has the address, which may be of the fleet's network
            return Answer("the host has an address that is not public")
        except (httpx2.HTTPError, TimeoutError) as error:
            return Answer(type(error).__name__)

    async def _post(self, url: str, body: str, headers: dict[str, str]) -> Answer:
        """Send a request, without following redirects.

        Raises:
            AddressError: The receiver's address is not public.
            httpx2.HTTPError: There is no answer.
            TimeoutError: The answer does not come in time.
        """
        answer: Answer | None = None
        try:
            async with (
                asyncio.timeout(_DEADLINE_S),
                self._client() as client,
                client.stream("POST", url, content=body, headers=headers) as response,
            ):
                answer = _answer_in(response)
                await _read_start(response)
        except (httpx2.HTTPError, TimeoutError):
            # The status decides, whatever becomes of the body.
            if answer is None:
                raise
        return answer

    def _client(self) -> httpx2.AsyncClient:
        if self._hosts is None:
            return httpx2.AsyncClient(verify=self._tls, timeout=_DEADLINE_S)
        # No proxy: it would resolve the name where its addresses cannot be checked.
        transport = _GuardedTransport(self._hosts, self._tls)
        return httpx2.AsyncClient(transport=transport, timeout=_DEADLINE_S, trust_env=False)


class _GuardedTransport(httpx2.AsyncHTTPTransport):
    """A transport that connects through the SSRF guard; see ``tasks/data/download/https.py``."""

    def __init__(self, hosts: frozenset[str], tls: ssl.SSLContext) -> None:
        self._pool = httpcore2.AsyncConnectionPool(
            ssl_context=tls, network_backend=AsyncSsrfGuard(hosts)
        )


def _headers(message_id: str, sent_at: float, body: str, secrets: Sequence[str]) -> dict[str, str]:
    at = datetime.fromtimestamp(sent_at, UTC)
    signatures = [Webhook(secret).sign(message_id, at, body) for secret in secrets]
    return {
        "content-type": "application/json",
        "user-agent": "training-worker",
        "webhook-id": message_id,
        "webhook-timestamp": str(int(sent_at)),
        "webhook-signature": " ".join(signatures),
    }


def _answer_in(response: httpx2.Response) -> Answer:
    if response.is_success:
        return Answer()
    is_gone = response.status_code == httpx2.codes.GONE
    return Answer(f"status {response.status_code}", _retry_after_s(response), is_gone)


async def _read_start(response: httpx2.Response) -> None:
    """Read a short body, so that a well-behaved receiver can finish it."""
    read_bytes = 0
    async for part in response.aiter_raw():
        read_bytes += len(part)
        if read_bytes > _MAX_BODY_BYTES:
            return


def _retry_after_s(response: httpx2.Response) -> float | None:
    """Return the seconds that a busy receiver asks for, at most a day; None if it does not."""
    text = response.headers.get("retry-after", "")
    if not (text.isascii() and text.isdigit()):
        return None
    return float(min(int(text[:9]), _DELAYS_S[-1]))
