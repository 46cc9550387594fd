"""Webhooks: the backend is told of each job's end, in the form of standardwebhooks.com.

That a job has ended and is to be told is one change of its record, so no end goes untold. It is
told until the receiver takes it, so the receiver may hear of it twice: under the same id.
"""

import logging
import random
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import cast

import httpx2
from redis import Redis
from standardwebhooks import Webhook

from tasks.schemas import documents as wire
from tasks.state import scripts
from tasks.state.job_store import JobStore
from tasks.state.keys import PENDING_WEBHOOKS, WEBHOOK_DELIVERIES
from tasks.state.record import JobSummary

logger = logging.getLogger(__name__)

# Seconds from one try to the next, as the specification recommends: a good day in all.
_PAUSES_S = (5, 300, 1800, 7200, 18000, 36000, 50400, 72000, 86400)
_TIMEOUT_S = 10.0
_AT_ONCE = 8
# Longer than a try takes: while one is under way, no other worker begins one.
_CLAIM_S = 60


class Webhooks:
    """Tells of the ends of jobs.

    Args:
        client: A connection to the broker that decodes responses.
        state: The jobs.
        url: Where they are told; None tells nobody.
        secrets: ``whsec_...``; each signs, so that the receiver can change over to another.
        count: Told of each try: ``taken``, ``failed`` or ``given_up``.
    """

    def __init__(
        self,
        client: Redis,
        state: JobStore,
        url: str | None,
        secrets: Sequence[str],
        count: Callable[[str], None] = lambda result: None,
    ) -> None:
        self._count = count
        self._redis, self._state, self._url = client, state, url
        self._signers = [Webhook(secret) for secret in secrets]
        self._http = httpx2.Client(timeout=_TIMEOUT_S, follow_redirects=False)

    def tell_due(self) -> list[str]:
        """Tell what is due.

        Returns:
            The jobs whose end the receiver took.
        """
        now = time.time()
        due = cast(
            "list[str]",
            self._redis.zrangebyscore(PENDING_WEBHOOKS, "-inf", now, start=0, num=_AT_ONCE),
        )
        if self._url is None:
            self._drop(due)
            return []
        claimed = [
            (record, tries)
            for record in self._state.summaries(due)
            if (tries := self._claimed(record.id, now)) >= 0
        ]
        self._drop(set(due) - self._state.existing(due))
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            told = list(pool.map(lambda it: self._tell(*it), claimed))
        return [record.id for (record, _), taken in zip(claimed, told, strict=True) if taken]

    def _claimed(self, job_id: str, now: float) -> int:
        return scripts.claim_webhook(
            self._redis,
            pending_webhooks=PENDING_WEBHOOKS,
            webhook_deliveries=WEBHOOK_DELIVERIES,
            now=now,
            claimed_until=now + _CLAIM_S,
            job_id=job_id,
        )

    def _drop(self, job_ids: Sequence[str] | set[str]) -> None:
        if job_ids:
            self._redis.zrem(PENDING_WEBHOOKS, *job_ids)
            self._redis.hdel(WEBHOOK_DELIVERIES, *job_ids)

    def _tell(self, record: JobSummary, tries: int) -> bool:
        """Try once; True where the receiver took it."""
        assert self._url is not None
        body = _document(record).model_dump_json()
        try:
            answer = self._http.post(self._url, content=body, headers=self._headers(record, body))
        except httpx2.HTTPError as error:
            problem, wait_s = type(error).__name__, None
        else:
            if answer.is_success:
                self._drop([record.id])
                self._count("delivered")
                return True
            problem, wait_s = f"the answer was {answer.status_code}", _retry_after_s(answer)
            if answer.status_code == httpx2.codes.GONE:
                tries = len(_PAUSES_S)
        extra = {"job": record.id}
        if tries >= len(_PAUSES_S):
            logger.error("nobody takes its webhook; given up: %s", problem, extra=extra)
            self._drop([record.id])
            self._count("exhausted")
            return False
        pause_s = wait_s or _PAUSES_S[tries] * random.uniform(0.9, 1.1)
        logger.warning("its webhook is told again in %.0f s: %s", pause_s, problem, extra=extra)
        self._redis.zadd(PENDING_WEBHOOKS, {record.id: time.time() + pause_s}, xx=True)
        self._count("failed")
        return False

    def _headers(self, record: JobSummary, body: str) -> dict[str, str]:
        # A job that was replayed ends again, under another attempt.
        message, now = f"msg_{record.id}_{record.attempt}", datetime.now(UTC)
        signatures = [signer.sign(message, now, body) for signer in self._signers]
        return {
            "content-type": "application/json",
            "user-agent": "training-worker",
            "webhook-id": message,
            "webhook-timestamp": str(int(now.timestamp())),
            "webhook-signature": " ".join(signatures),
        }


def _document(record: JobSummary) -> wire.Webhook:
    error = None
    if record.error_code is not None:
        error = {
            "code": record.error_code,
            "stage": record.error_stage,
            "message": record.error,
        }
    end = {
        "job_id": record.id,
        "name": record.name,
        "status": record.status.value,
        "result": record.result,
        "error": error,
    }
    told = {"type": f"job.{record.status}", "timestamp": record.updated_at, "data": end}
    return wire.Webhook.model_validate(told)


def _retry_after_s(answer: httpx2.Response) -> float | None:
    """What a busy receiver asks for, where that is some seconds and not more than a day."""
    asked = answer.headers.get("retry-after", "")
    return float(min(int(asked), _PAUSES_S[-1])) if asked.isascii() and asked.isdigit() else None
