"""Webhooks: each job's end is delivered to the backend, in the form of standardwebhooks.com.

The job's end and its pending webhook are written in one change, so every end is delivered. Delivery
is repeated until the receiver accepts it, so the receiver may get an end twice, under the same id.
"""

import logging
import random
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import cast

import httpx2
from redis import Redis
from standardwebhooks import Webhook

from tasks.clock import broker_time
from tasks.schemas import documents
from tasks.state import scripts
from tasks.state.job_reader import JobReader
from tasks.state.keys import PENDING_WEBHOOKS, WEBHOOK_DELIVERIES
from tasks.state.record import JobSummary

logger = logging.getLogger(__name__)

# The delays between deliveries that the specification recommends; about three days in all.
_DELAYS_S = (5, 300, 1800, 7200, 18000, 36000, 50400, 72000, 86400)
_TIMEOUT_S = 10.0
_CONCURRENCY = 8
# Longer than a delivery takes: no other worker begins one meanwhile.
_CLAIM_S = 60


class Webhooks:
    """Delivers the ends of jobs.

    Args:
        client: A connection to the broker that decodes responses.
        jobs: The jobs.
        url: The receiver's address; None discards all webhooks.
        secrets: ``whsec_...``; each signs, so that the receiver can rotate them.
        count: Called after each delivery with ``delivered``, ``failed`` or ``exhausted``.
    """

    def __init__(
        self,
        client: Redis,
        jobs: JobReader,
        url: str | None,
        secrets: Sequence[str],
        count: Callable[[str], None] = lambda result: None,
    ) -> None:
        self._redis, self._jobs, self._url, self._count = client, jobs, url, count
        self._signers = [Webhook(secret) for secret in secrets]
        self._http = httpx2.Client(timeout=_TIMEOUT_S, follow_redirects=False)

    def deliver_due(self) -> list[str]:
        """Deliver the webhooks that are due.

        Returns:
            The ids of the jobs whose webhook was delivered.
        """
        now = broker_time(self._redis)
        due = cast(
            "list[str]",
            self._redis.zrangebyscore(PENDING_WEBHOOKS, "-inf", now, start=0, num=_CONCURRENCY),
        )
        if self._url is None:
            self._discard(due)
            return []
        claimed = [
            (job, deliveries)
            for job in self._jobs.summaries(due)
            if (deliveries := self._claim(job.id, now)) >= 0
        ]
        self._discard(set(due) - self._jobs.existing(due))  # expired jobs
        with ThreadPoolExecutor(_CONCURRENCY) as pool:
            delivered = list(pool.map(lambda claim: self._deliver(*claim), claimed))
        return [job.id for (job, _), is_done in zip(claimed, delivered, strict=True) if is_done]

    def _claim(self, job_id: str, now: float) -> int:
        """Return the deliveries tried so far; -1 if another worker has the webhook."""
        return scripts.claim_webhook(
            self._redis,
            pending_webhooks=PENDING_WEBHOOKS,
            webhook_deliveries=WEBHOOK_DELIVERIES,
            now=now,
            claimed_until=now + _CLAIM_S,
            job_id=job_id,
        )

    def _discard(self, job_ids: Collection[str]) -> None:
        if job_ids:
            self._redis.zrem(PENDING_WEBHOOKS, *job_ids)
            self._redis.hdel(WEBHOOK_DELIVERIES, *job_ids)

    def _deliver(self, job: JobSummary, deliveries: int) -> bool:
        """Try once; return whether the receiver accepted it."""
        assert self._url is not None
        body = _document(job).model_dump_json()
        try:
            response = self._http.post(self._url, content=body, headers=self._headers(job, body))
        except httpx2.HTTPError as error:
            problem, delay_s = type(error).__name__, None
        else:
            if response.is_success:
                self._discard([job.id])
                self._count("delivered")
                return True
            problem, delay_s = f"status {response.status_code}", _retry_after_s(response)
            if response.status_code == httpx2.codes.GONE:
                deliveries = len(_DELAYS_S)
        extra = {"job": job.id}
        if deliveries >= len(_DELAYS_S):
            logger.error("webhook not delivered, no more retries: %s", problem, extra=extra)
            self._discard([job.id])
            self._count("exhausted")
            return False
        delay_s = delay_s or _DELAYS_S[deliveries] * random.uniform(0.9, 1.1)
        logger.warning("webhook not delivered, retry in %.0f s: %s", delay_s, problem, extra=extra)
        self._redis.zadd(PENDING_WEBHOOKS, {job.id: broker_time(self._redis) + delay_s}, xx=True)
        self._count("failed")
        return False

    def _headers(self, job: JobSummary, body: str) -> dict[str, str]:
        # A replayed job ends again, under another attempt.
        message_id = f"msg_{job.id}_{job.attempt}"
        # Receivers refuse a wrong time.
        now = datetime.fromtimestamp(broker_time(self._redis), UTC)
        signatures = [signer.sign(message_id, now, body) for signer in self._signers]
        return {
            "content-type": "application/json",
            "user-agent": "training-worker",
            "webhook-id": message_id,
            "webhook-timestamp": str(int(now.timestamp())),
            "webhook-signature": " ".join(signatures),
        }


def _document(job: JobSummary) -> documents.Webhook:
    error = None
    if job.error_code is not None:
        error = {"code": job.error_code, "stage": job.error_stage, "message": job.error}
    data = {
        "job_id": job.id,
        "name": job.name,
        "status": job.status.value,
        "result": job.result,
        "error": error,
    }
    return documents.Webhook.model_validate(
        {"type": f"job.{job.status}", "timestamp": job.updated_at, "data": data}
    )


def _retry_after_s(response: httpx2.Response) -> float | None:
    """Return the seconds that a busy receiver asks for, at most a day; None if it does not."""
    text = response.headers.get("retry-after", "")
    if not (text.isascii() and text.isdigit()):
        return None
    return float(min(int(text), _DELAYS_S[-1]))
