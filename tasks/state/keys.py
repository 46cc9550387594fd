"""The keys in Redis of the fleet's state; those of one job are in ``tasks/contract.py``.

All of them expire, quotas and what tenants use after ``USAGE_TTL``.
"""

from datetime import timedelta

JOBS = "training:jobs"
"""Sorted set: the ids of all jobs by the time they were submitted."""
TENANT_JOBS_PREFIX = "training:tenant_jobs:"
"""Before a tenant: the same of its jobs."""
RENEWALS = "training:jobs:renewals"
"""Sorted set: ``ID TENANT`` of every job by the time when the maintenance renews the job's keys, or
removes it from the two indexes above if its record has expired."""
IN_FLIGHT = "training:jobs:in_flight"
"""Hash: the ids of the jobs that have a message or whose stage runs, each with its tenant."""
DUE = "training:jobs:due"
"""Sorted set: the ids of the jobs that wait for a retry, by the time it is due."""
DEAD_LETTERS = "training:jobs:dead_letters"
"""Sorted set: the ids of the jobs that the infrastructure failed, by the time of their end."""

UNSTORED_RESULTS = "training:jobs:results"
"""Sorted set: the ids of ended jobs whose Celery results are not stored yet, by the time of their
end."""

DELETIONS = "training:jobs:deletions"
"""Sorted set: the ids of deleted jobs of which the store may still have files, by the time of their
next removal."""

TENANT_QUEUES = "training:tenant_queues"
"""Set: the queues in front of which jobs wait in tenant queues. With ``:QUEUE``, the tenants of
that queue by their last dispatch; with ``:QUEUE:TENANT``, a tenant's jobs, the next one first."""
TENANT_QUEUES_SINCE = "training:tenant_queues_since"
"""With ``:QUEUE:TENANT``, the same jobs by the time since when they wait."""
FLEET = "training:fleet"
"""Hash: ``room:QUEUE`` is how many messages a queue may hold; ``weight:TENANT`` and
``limit:TENANT`` (empty for none) are a tenant's share."""

USAGE = "training:usage"
"""With ``:MONTH`` (``2026-11``, in UTC), a set: the tenants that used the fleet then. With
``:MONTH:TENANT``, a hash: what the tenant used; see ``tasks/state/tenants/usage.py``."""
QUOTAS = "training:quotas"
"""Hash: the quotas of each tenant, as JSON; ``*`` is every tenant without its own."""
USAGE_TTL = timedelta(days=400)
"""How long both are kept: 13 months. The maintenance renews the quotas."""

PENDING_WEBHOOKS = "training:webhooks"
"""Sorted set: the ids of ended jobs whose webhook is not delivered, by the next delivery's time."""
WEBHOOK_DELIVERIES = "training:webhooks:deliveries"
"""Hash: the deliveries tried so far, by job."""

DELIVERIES_SUFFIX = ":deliveries"
"""After the key of a job's record: a hash with the deliveries of the job's own webhook, as JSON by
their numbers. ``sequence`` is the newest number, ``pending`` counts those to deliver, ``progress``
is the newest one of progress, ``progress_at`` its time; ``gone``: the receiver wants no more."""
TENANT_WEBHOOKS_PREFIX = "training:webhooks:tenant:"
"""Before a tenant: a sorted set of ``JOB SEQUENCE`` of its jobs' pending deliveries, by the time
when each is due."""
WEBHOOK_TENANTS = "training:webhooks:tenants"
"""Sorted set: the tenants with pending deliveries, by the time when the first one is due."""

WEBHOOK_SECRETS_PREFIX = "training-secrets:webhooks:"
"""Before a tenant: a hash of its webhook secrets by their ids, at most two. It does not expire, and
has a prefix of its own: metrics may read all of the others."""

COUNTS = "training:counts"
"""Hash: the counters, by the fields that ``tasks/metrics.py`` gives."""

AUDIT = "training:audit"
"""Stream: who did what, in entries whose only field ``entry`` is JSON."""
AUDIT_EXPORTED = "training:audit:exported"
"""The id of the last entry of the audit log that is in the store."""

WORKERS = "training:workers"
"""Set: the names of live workers, and of some that are gone."""
WORKER_PREFIX = "training:worker:"
"""Before a worker's name: its heartbeat, a JSON text that expires unless it is renewed."""

MAINTENANCE_LEASE = "training:maintenance:lease"
"""The lock of the worker that does the fleet's maintenance."""
REDELIVERY_LEASE = "training:redelivery:lease"
"""The lock of the worker that redelivers lost workers' messages."""
AUDIT_LEASE = "training:audit:lease"
"""The lock of the worker that exports the audit log."""
WEBHOOKS_LEASE = "training:webhooks:lease"
"""The lock of the worker that delivers webhooks."""
MISSING_MESSAGES = "training:reconciler:missing"
"""Hash: the jobs without a message at the reconciler's last look, by job: what each waited for and
since when."""

LOGIN_LINKS_PREFIX = "training:login_link:"
"""Before the digest of a login link's token: the digest of the API key that it logs in with."""

UNREADABLE = "training:unreadable"
"""List: messages that no worker could process, the newest first; its length is bounded."""

PROBE = "training:probe"
"""An empty text that shows for a second that the broker accepts writes."""

UNACKED = "unacked"
UNACKED_INDEX = "unacked_index"
"""kombu's sorted set of the delivery tags that workers hold, unless the transport's options rename
it: a worker passes the name on that its transport has."""


def tenants_key(queue: str) -> str:
    """Key of the tenants with jobs in front of a queue, the longest without a dispatch first."""
    return f"{TENANT_QUEUES}:{queue}"


def tenant_queue_key(queue: str, tenant: str) -> str:
    """Key of a tenant's jobs in front of a queue, the next one first."""
    return f"{TENANT_QUEUES}:{queue}:{tenant}"


def tenant_since_key(queue: str, tenant: str) -> str:
    """Key of the same jobs, the longest wait first."""
    return f"{TENANT_QUEUES_SINCE}:{queue}:{tenant}"
