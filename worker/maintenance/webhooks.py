"""Webhooks: each job's end is delivered to the backend, in the form of standardwebhooks.com.

The job's end and its pending webhook are written in one change, so every end is delivered. Delivery
is repeated until the receiver accepts it, so the receiver may get an end twice, under the same id.
"""

import asyncio
import logging
import random
import ssl
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import cast

import httpx2
from redis import Redis, RedisError
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
# From the connection to the end of the answer, however slowly the receiver sends it.
_DEADLINE_S = 15.0
_MAX_BODY_BYTES = 4096
_CONCURRENCY = 32
# Longer than a delivery takes: no other worker begins one meanwhile.
_CLAIM_S = 60


class Webhooks:
    """Delivers the ends of jobs; each delivery has a thread, so that none delays another.

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
        self._tls = httpx2.create_ssl_context()
        self._pool = ThreadPoolExecutor(_CONCURRENCY, thread_name_prefix="webhook")
        self._running: set[Future[bool]] = set()

    def deliver_due(self) -> dict[str, Future[bool]]:
        """Begin to deliver the webhooks that are due, as far as threads are free.

        Returns:
            By job, whether the receiver will have accepted its webhook.
        """
        self._running = {delivery for delivery in self._running if not delivery.done()}
        now = broker_time(self._redis)
        free = _CONCURRENCY - len(self._running)
        due = cast(
            "list[str]",
            self._redis.zrangebyscore(PENDING_WEBHOOKS, "-inf", now, start=0, num=free),
        )
        if self._url is None:
            self._discard(due)
            return {}
        existing = self._jobs.existing(due)
        self._discard(set(due) - existing)  # expired jobs
        begun = {
            job_id: self._pool.submit(self._deliver, self._url, job_id, deliveries)
            for job_id in due
            if job_id in existing and (deliveries := self._claim(job_id, now)) >= 0
        }
        self._running.update(begun.values())
        return begun

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

    def _deliver(self, url: str, job_id: str, deliveries: int) -> bool:
        """Try once; return whether the receiver accepted it."""
        try:
            answer = self._answer(url, job_id)
            if answer.problem is None:
                self._discard([job_id])
                self._count("delivered")
            else:
                self._retry(job_id, deliveries, answer)
        except RedisError as error:
            # The claim expires; the receiver may get the webhook again, under the same id.
            logger.warning("webhook not recorded: %s", error, extra={"job": job_id})
            return False
        return answer.problem is None

    def _answer(self, url: str, job_id: str) -> "_Answer":
        try:
            job = self._jobs.summary(job_id)
            body = _document(job).model_dump_json()
            return asyncio.run(_post(url, body, self._headers(job, body), self._tls))
        except RedisError:
            raise
        except (httpx2.HTTPError, TimeoutError) as error:
            return _Answer(type(error).__name__)
        except Exception as error:
            # Such as a record that cannot be read: it is given up like a receiver that refuses.
            logger.exception("cannot deliver a webhook", extra={"job": job_id})
            return _Answer(type(error).__name__)

    def _retry(self, job_id: str, deliveries: int, answer: "_Answer") -> None:
        """Plan the next delivery, or give up after the last one."""
        extra = {"job": job_id}
        if answer.is_final or deliveries >= len(_DELAYS_S):
            problem = answer.problem
            logger.error("webhook not delivered, no more retries: %s", problem, extra=extra)
            self._discard([job_id])
            self._count("exhausted")
            return
        delay_s = answer.retry_after_s or _DELAYS_S[deliveries] * random.uniform(0.9, 1.1)
        logger.warning(
            "webhook not delivered, retry in %.0f s: %s", delay_s, answer.problem, extra=extra
        )
        due_at = broker_time(self._redis) + delay_s
        self._redis.zadd(PENDING_WEBHOOKS, {job_id: due_at}, xx=True)
        self._count("failed")

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


@dataclass(frozen=True)
class _Answer:
    """A receiver's answer.

    Attributes:
        problem: Why the webhook is not delivered; None if the receiver accepted it.
        retry_after_s: The delay that the receiver asks for.
        is_final: Whether the receiver wants no more webhooks.
    """

    problem: str | None = None
    retry_after_s: float | None = None
    is_final: bool = False


async def _post(url: str, body: str, headers: dict[str, str], tls: ssl.SSLContext) -> _Answer:
    """Send a webhook.

    Raises:
        httpx2.HTTPError: There is no answer.
        TimeoutError: The answer does not come in time.
    """
    answer: _Answer | None = None
    try:
        async with (
            asyncio.timeout(_DEADLINE_S),
            httpx2.AsyncClient(verify=tls, timeout=_DEADLINE_S) as client,
            client.stream("POST", url, content=body, headers=headers) as response,
        ):
            answer = _answer_in(response)
            await _read_start(response)
    except (httpx2.HTTPError, TimeoutError):
        # The status decides, whatever becomes of the body.
        if answer is None:
            raise
    return answer


def _answer_in(response: httpx2.Response) -> _Answer:
    if response.is_success:
        return _Answer()
    is_gone = response.status_code == httpx2.codes.GONE
    return _Answer(f"status {response.status_code}", _retry_after_s(response), is_gone)


async def _read_start(response: httpx2.Response) -> None:
    """Read a short body, so that a well-behaved receiver can finish it."""
    read_bytes = 0
    async for part in response.aiter_raw():
        read_bytes += len(part)
        if read_bytes > _MAX_BODY_BYTES:
            return


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
