"""The fleet's own webhook: each job's end is delivered to the operator's backend.

The job's end and its pending webhook are written in one change, so every end is delivered. Delivery
is repeated until the receiver accepts it, so the receiver may get an end twice, under the same id.
"""

import logging
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import cast

from redis import Redis, RedisError

from tasks.clock import broker_time
from tasks.schemas import documents
from tasks.state import scripts
from tasks.state.job_reader import JobReader
from tasks.state.keys import PENDING_WEBHOOKS, WEBHOOK_DELIVERIES
from tasks.state.record import JobSummary
from worker.maintenance.webhook_sender import CLAIM_S, Answer, WebhookSender

logger = logging.getLogger(__name__)

_CONCURRENCY = 32


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
        self._secrets, self._sender = secrets, WebhookSender()
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
            claimed_until=now + CLAIM_S,
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

    def _answer(self, url: str, job_id: str) -> Answer:
        try:
            job = self._jobs.summary(job_id)
            body = _document(job).model_dump_json()
            # A replayed job ends again, under another attempt.
            message_id = f"msg_{job.id}_{job.attempt}"
            return self._sender.send(url, message_id, broker_time(self._redis), body, self._secrets)
        except RedisError:
            raise
        except Exception as error:
            # Such as a record that cannot be read: it is given up like a receiver that refuses.
            logger.exception("cannot deliver a webhook", extra={"job": job_id})
            return Answer(type(error).__name__)

    def _retry(self, job_id: str, deliveries: int, answer: Answer) -> None:
        """Plan the next delivery, or give up after the last one."""
        extra = {"job": job_id}
        delay_s = answer.next_delay_s(deliveries + 1)
        if delay_s is None:
            problem = answer.problem
            logger.error("webhook not delivered, no more retries: %s", problem, extra=extra)
            self._discard([job_id])
            self._count("exhausted")
            return
        logger.warning(
            "webhook not delivered, retry in %.0f s: %s", delay_s, answer.problem, extra=extra
        )
        due_at = broker_time(self._redis) + delay_s
        self._redis.zadd(PENDING_WEBHOOKS, {job_id: due_at}, xx=True)
        self._count("failed")


def _document(job: JobSummary) -> documents.EndWebhook:
    failure = job.failure()
    data = {
        "job_id": job.id,
        "name": job.name,
        "status": job.status.value,
        "result": job.result,
        "error": failure and documents.Failure.of(failure).model_dump(),
    }
    return documents.EndWebhook.model_validate(
        {"type": f"job.{job.status}", "timestamp": job.updated_at, "data": data}
    )
