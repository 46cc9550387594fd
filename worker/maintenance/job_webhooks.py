"""Jobs' own webhooks: delivers their events to the receivers that the jobs name.

Every tenant has its share of the threads, and its own limit of deliveries a minute: slow receivers
of one tenant delay no other's.
"""

import json
import logging
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from redis import Redis, RedisError, ResponseError

from tasks.clock import broker_time
from tasks.contract import ENDED
from tasks.schemas import documents
from tasks.state.job_reader import JobReader
from tasks.state.tenants.webhook_secrets import WebhookSecrets
from tasks.state.webhook_deliveries import ClaimedDelivery, WebhookDeliveries
from worker.maintenance.webhook_sender import CLAIM_S, Answer, WebhookSender

logger = logging.getLogger(__name__)

# A tenant takes more than one of the shared threads only while as many remain free; of the others,
# each tenant gets one.
_SHARED, _CONCURRENCY = 32, 128
_PERIOD_S = 60
# What only operators see of a result.
_LOCATIONS = ("published", "manifest")


class JobWebhooks:
    """Delivers the events of jobs.

    Args:
        client: A connection to the broker that decodes responses.
        deliveries: The deliveries.
        hosts: Hosts that receivers may have although their addresses are not public.
        per_minute: The maximum deliveries a minute of a tenant.
        count: Called after each delivery with ``delivered``, ``failed`` or ``exhausted``.
    """

    def __init__(
        self,
        client: Redis,
        deliveries: WebhookDeliveries,
        hosts: frozenset[str],
        per_minute: int,
        count: Callable[[str], None] = lambda result: None,
    ) -> None:
        self._redis, self._deliveries, self._count = client, deliveries, count
        self._jobs, self._secrets = JobReader(client), WebhookSecrets(client)
        self._sender, self._per_minute = WebhookSender(hosts), per_minute
        self._pool = ThreadPoolExecutor(_CONCURRENCY, thread_name_prefix="job-webhook")
        self._running: dict[Future[None], str] = {}
        self._period, self._begun = 0, Counter[str]()

    def deliver_due(self) -> list[Future[None]]:
        """Begin to deliver what is due, as far as each tenant's share and limit go."""
        self._running = {it: tenant for it, tenant in self._running.items() if not it.done()}
        now = broker_time(self._redis)
        if int(now) // _PERIOD_S != self._period:
            self._period, self._begun = int(now) // _PERIOD_S, Counter()
        begun: list[Future[None]] = []
        tenants = self._deliveries.due_tenants(now)
        while tenants := [tenant for tenant in tenants if self._begin(tenant, now, begun)]:
            pass  # one of each tenant in turn
        return begun

    def _begin(self, tenant: str, now: float, begun: list[Future[None]]) -> bool:
        """Begin a tenant's next delivery; return whether there may be more of it."""
        held, total = Counter(self._running.values())[tenant], len(self._running)
        may_begin = held + 1 <= _SHARED - total - 1 or (not held and total < _CONCURRENCY)
        if not may_begin or self._begun[tenant] >= self._per_minute:
            return False
        try:
            claimed = self._deliveries.claim(tenant, now, now + CLAIM_S)
        except ValueError as error:
            # A newer version's: a worker of that version delivers it after the claim.
            logger.warning("cannot read a delivery of tenant %s: %s", tenant, type(error).__name__)
            return True
        except ResponseError as error:
            logger.warning("cannot claim a delivery of tenant %s: %s", tenant, error)
            return False
        if claimed is None:
            return False
        self._begun[tenant] += 1
        delivery = self._pool.submit(self._deliver, claimed)
        self._running[delivery] = tenant
        begun.append(delivery)
        return True

    def _deliver(self, claimed: ClaimedDelivery) -> None:
        """Try once, and record how it ended."""
        try:
            answer = self._answer(claimed)
            self._record(claimed, answer)
        except RedisError as error:
            # The claim expires; the receiver may get the webhook again, under the same id.
            logger.warning("webhook not recorded: %s", error, extra={"job": claimed.job_id})

    def _answer(self, claimed: ClaimedDelivery) -> Answer:
        try:
            secrets = self._secrets.signing(claimed.tenant)
            if not secrets:
                return Answer("the tenant has no webhook secret")
            body = self._body(claimed)
            message_id = f"evt_{claimed.job_id}_{claimed.delivery.sequence}"
            now = broker_time(self._redis)
            return self._sender.send(claimed.webhook.url, message_id, now, body, secrets)
        except RedisError:
            raise
        except Exception as error:
            # Such as a record that cannot be read: it is given up like a receiver that refuses.
            logger.exception("cannot deliver a webhook", extra={"job": claimed.job_id})
            return Answer(type(error).__name__)

    def _record(self, claimed: ClaimedDelivery, answer: Answer) -> None:
        now, attempts = broker_time(self._redis), claimed.delivery.attempts
        if answer.problem is None:
            self._deliveries.record(claimed, "delivered", "accepted", now=now)
            self._count("delivered")
            return
        delay_s = answer.next_delay_s(attempts)
        extra = {"job": claimed.job_id}
        logger.info("webhook %s: %s", claimed.delivery.event, answer.problem, extra=extra)
        if delay_s is None:
            self._deliveries.record(
                claimed, "exhausted", answer.problem, now=now, is_gone=answer.is_final
            )
            self._count("exhausted")
        else:
            self._deliveries.record(
                claimed, "pending", answer.problem, now=now, due_at=now + delay_s
            )
            self._count("failed")

    def _body(self, claimed: ClaimedDelivery) -> str:
        delivery = claimed.delivery
        name = self._jobs.summary(claimed.job_id).name
        about = {"job_id": claimed.job_id, "name": name, "sequence": delivery.sequence}
        kind, at = f"job.{delivery.event}", delivery.at
        if delivery.event not in ENDED:
            data = {**about, "event": json.loads(delivery.text)}
            document = {"type": kind, "timestamp": at, "data": data}
            return documents.EventWebhook.model_validate(document).model_dump_json()
        failure = delivery.failure
        data = {
            **about,
            "status": delivery.event,
            "result": delivery.result and _files(json.loads(delivery.result), claimed.job_id),
            "error": failure and documents.Failure.of(failure).model_dump(),
        }
        document = {"type": kind, "timestamp": at, "data": data}
        return documents.EndWebhook.model_validate(document).model_dump_json()


def _files(result: dict[str, Any], job_id: str) -> dict[str, Any]:
    """Return the published files as the API names them: not where the store is."""
    names = [key.partition(f"/{job_id}/")[2] for key in result["files"]]
    visible = {name: value for name, value in result.items() if name not in _LOCATIONS}
    return {**visible, "files": names}
