"""The scripts that change jobs: each is whole or absent.

A change made for a stage is fenced by ``token``, which only the newest start of a stage holds.
``job_key`` is the job's hash, ``events_key`` its stream of events without progress, and ``ttl_s``
says for how many seconds everything is kept. What a script returns is written in its file.
"""

from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

from tasks import metrics
from tasks.contract import EVENT_FIELD, EVENTS_SUFFIX, JOB_KEY, PROGRESS_SUFFIX
from tasks.redis_script import Key, ScriptFolder
from tasks.state import keys

# Far more than a job needs: a run of 10,000 steps that saves 100 checkpoints has some 150 events.
_MAX_EVENTS, _MAX_EVENT_BYTES = 10_000, 4 * 2**20
# Points of a stage's curve: more than a screen is wide, in some 100 KB.
_MAX_PROGRESS = 1000
# A client that lost its connection sends a job again a few times.
_MAX_RESULTS = 16
# The log of a job's webhook, some 100 KB. What is pending stays in it.
_MAX_DELIVERIES = 200
# Of a receiver that does not answer; what comes once a job is delivered beyond it.
_MAX_JOB_PENDING, _MAX_TENANT_PENDING = 100, 10_000

_lua = ScriptFolder(
    files("tasks.state") / "lua",
    {
        "keys": {
            "job_prefix": JOB_KEY,
            "events_suffix": EVENTS_SUFFIX,
            "progress_suffix": PROGRESS_SUFFIX,
            "event_field": EVENT_FIELD,
            "jobs": keys.JOBS,
            "tenant_jobs_prefix": keys.TENANT_JOBS_PREFIX,
            "renewals": keys.RENEWALS,
            "in_flight": keys.IN_FLIGHT,
            "due": keys.DUE,
            "dead_letters": keys.DEAD_LETTERS,
            "tenant_queues": keys.TENANT_QUEUES,
            "tenant_queues_since": keys.TENANT_QUEUES_SINCE,
            "fleet": keys.FLEET,
            "pending_webhooks": keys.PENDING_WEBHOOKS,
            "webhook_deliveries": keys.WEBHOOK_DELIVERIES,
            "unstored_results": keys.UNSTORED_RESULTS,
            "deletions": keys.DELETIONS,
            "deliveries_suffix": keys.DELIVERIES_SUFFIX,
            "tenant_webhooks_prefix": keys.TENANT_WEBHOOKS_PREFIX,
            "webhook_tenants": keys.WEBHOOK_TENANTS,
            "counts": keys.COUNTS,
            "usage": keys.USAGE,
            "quotas": keys.QUOTAS,
        },
        "metrics": {
            "jobs": metrics.JOBS.name,
            "dead_letters": metrics.DEAD_LETTERS.name,
            "takeovers": metrics.TAKEOVERS.name,
            "requeues": metrics.REQUEUES.name,
            "gpu_seconds": metrics.GPU_SECONDS.name,
            "job_webhooks": metrics.JOB_WEBHOOKS.name,
        },
        "limits": {
            "events": _MAX_EVENTS,
            "event_bytes": _MAX_EVENT_BYTES,
            "progress": _MAX_PROGRESS,
            "results": _MAX_RESULTS,
            "usage_ttl_s": int(keys.USAGE_TTL.total_seconds()),
            "deliveries": _MAX_DELIVERIES,
            "job_pending": _MAX_JOB_PENDING,
            "tenant_pending": _MAX_TENANT_PENDING,
        },
    },
)


Candidates = list[Any]
"""What decides which job is dispatched next; see ``lua/fleet.lua``."""


@_lua.script
def create_job(
    *,
    job_key: Key,
    events_key: Key,
    ttl_s: int,
    event: str,
    first_queue: str,
    message: str,
    fields: Mapping[str, str],
) -> str:
    """Record a job and send it, or let it wait."""
    raise NotImplementedError


@_lua.script
def follow_job(*, job_key: Key, events_key: Key, ttl_s: int, result_id: str) -> str:
    """Let another Celery result follow a job."""
    raise NotImplementedError


@_lua.script
def forget_results(*, unstored_results: Key, job_id: str, ended_at: float) -> None:
    """Remove a job whose results are stored."""
    raise NotImplementedError


@_lua.script
def begin_stage(
    *,
    job_key: Key,
    events_key: Key,
    unacked_index: Key,
    ttl_s: int,
    change_id: str,
    stage_number: int,
    stage: str,
    delivery_tag: str,
    max_starts: int,
    worker: str,
    queue: str,
    exhausted_event: str,
    exhausted_message: str,
    worker_version: int,
    message_version: int,
    retry_in_s: float,
    gpu_class: str,
    gpu_price: float | None,
    currency: str,
) -> list[Any]:
    """Begin a stage; ``stage_number`` of the first one is 1.

    ``gpu_class`` is empty without a GPU, and ``gpu_price`` is that of its hour.
    """
    raise NotImplementedError


@_lua.script
def write(
    *,
    job_key: Key,
    events_key: Key,
    ttl_s: int,
    token: str,
    change_id: str,
    events: Sequence[str],
    fields: Mapping[str, str],
    counts: metrics.Counts,
) -> int:
    """Append events and set fields for a start."""
    raise NotImplementedError


@_lua.script
def finish_stage(
    *,
    job_key: Key,
    events_key: Key,
    ttl_s: int,
    token: str,
    change_id: str,
    event: str,
    fields: Mapping[str, str],
    next_queue: str,
    message: str,
    is_shared: bool,
    is_gpu_used: bool,
    counts: metrics.Counts,
) -> str:
    """Record that a stage is done; ``message`` starts the next one in ``next_queue``."""
    raise NotImplementedError


@_lua.script
def end_job(
    *,
    job_key: Key,
    events_key: Key,
    ttl_s: int,
    token: str,
    change_id: str,
    status: str,
    is_dead_letter: bool,
    is_gpu_used: bool,
    events: Sequence[str],
    fields: Mapping[str, str],
    counts: metrics.Counts,
) -> int:
    """End a job."""
    raise NotImplementedError


@_lua.script
def release_stage(
    *,
    job_key: Key,
    events_key: Key,
    ttl_s: int,
    token: str,
    change_id: str,
    event: str,
    fields: Mapping[str, str],
    delay_s: float | None,
    is_gpu_used: bool,
    counts: metrics.Counts,
) -> str:
    """Give a stage back."""
    raise NotImplementedError


@_lua.script
def requested_state(*, job_key: Key, events_key: Key, ttl_s: int, token: str) -> str:
    """Read whether a start should continue."""
    raise NotImplementedError


@_lua.script
def cancel_job(
    *,
    job_key: Key,
    events_key: Key,
    ttl_s: int,
    event: str,
    message: str,
    save_on_cancel: bool,
) -> str:
    """Cancel a job; ``event`` and ``message`` are of its end."""
    raise NotImplementedError


@_lua.script
def pause_job(*, job_key: Key, events_key: Key, ttl_s: int, event: str) -> str:
    """Pause a job."""
    raise NotImplementedError


@_lua.script
def resume_job(
    *,
    job_key: Key,
    events_key: Key,
    ttl_s: int,
    from_status: str,
    event: str,
    queue: str,
    message: str,
) -> str:
    """Resume a job; ``message`` starts the stage it waits for in ``queue``."""
    raise NotImplementedError


@_lua.script
def prioritize_job(
    *, job_key: Key, events_key: Key, ttl_s: int, priority: int, is_to_front: bool, event: str
) -> str:
    """Change a waiting job's priority, or move it to the front."""
    raise NotImplementedError


@_lua.script
def set_quota(
    *, quotas_key: Key, ttl_s: int, tenant: str, changes: Mapping[str, float | bool | None]
) -> str:
    """Change some of a tenant's quotas."""
    raise NotImplementedError


@_lua.script
def requeue_stage(
    *,
    job_key: Key,
    events_key: Key,
    unacked_index: Key,
    ttl_s: int,
    attempt: int,
    stage: str,
    event: str,
    max_unstarted: int,
    exhausted_event: str,
    exhausted_message: str,
) -> str:
    """Let a stage whose message was lost begin again."""
    raise NotImplementedError


@_lua.script
def take_due_job(*, job_key: Key, events_key: Key, ttl_s: int) -> int:
    """Take a job whose retry is due."""
    raise NotImplementedError


@_lua.script
def renew_job(*, job_key: Key, events_key: Key, ttl_s: int, entry: str, tenant: str) -> None:
    """Renew a job's keys."""
    raise NotImplementedError


@_lua.script
def record_copies(*, job_key: Key, events_key: Key, ttl_s: int, fields: Mapping[str, str]) -> int:
    """Replace what an ended job's record says of the copies of its results."""
    raise NotImplementedError


@_lua.script
def hold_results(*, job_key: Key, events_key: Key, ttl_s: int, seconds: int) -> int:
    """Hold the results of an ended job while they are copied; 0 seconds release them."""
    raise NotImplementedError


@_lua.script
def edit_job(*, job_key: Key, events_key: Key, ttl_s: int, fields: Mapping[str, str]) -> int:
    """Change what people call a job."""
    raise NotImplementedError


@_lua.script
def delete_job(
    *, job_key: Key, events_key: Key, ttl_s: int, attempt: int, status: str, remains: str
) -> str:
    """Delete the record of an ended job; ``remains`` is what the store has of it, as JSON."""
    raise NotImplementedError


@_lua.script
def restore_job(
    *,
    job_key: Key,
    events_key: Key,
    ttl_s: int,
    rest_s: int,
    fields: Mapping[str, str],
    positions: Sequence[str],
    events: Sequence[str],
) -> int:
    """Record a job that has ended and whose record was lost."""
    raise NotImplementedError


@_lua.script
def dispatch_candidates() -> Candidates:
    """Read what decides which job is dispatched next."""
    raise NotImplementedError


@_lua.script
def dispatch_job(*, tenant_queue: Key, ttl_s: int, queue: str, tenant: str) -> list[Any]:
    """Take the first job out of a tenant queue and send it."""
    raise NotImplementedError


@_lua.script
def claim_webhook(
    *,
    pending_webhooks: Key,
    webhook_deliveries: Key,
    now: float,
    claimed_until: float,
    job_id: str,
) -> int:
    """Claim a pending webhook."""
    raise NotImplementedError


@_lua.script
def record_audit(*, audit_key: Key, retention_s: int, max_entries: int, entry: str) -> str:
    """Append an entry to the audit log."""
    raise NotImplementedError


@_lua.script
def claim_delivery(
    *,
    tenant: str,
    now: float,
    claimed_until: float,
) -> list[str]:
    """Claim a tenant's first pending delivery that is due."""
    raise NotImplementedError


@_lua.script
def record_delivery(
    *,
    deliveries_key: Key,
    tenant: str,
    job_id: str,
    sequence: int,
    now: float,
    status: str,
    reason: str,
    due_at: float | None,
    is_gone: bool,
) -> str:
    """Record how an attempt to deliver ended."""
    raise NotImplementedError


@_lua.script
def redeliver(
    *,
    deliveries_key: Key,
    ttl_s: int,
    tenant: str,
    job_id: str,
    sequence: int | None,
    now: float,
) -> list[int]:
    """Make deliveries due now."""
    raise NotImplementedError


@_lua.script
def create_webhook_secret(*, secrets_key: Key, secret_id: str, secret: str, maximum: int) -> int:
    """Add a secret unless the tenant has as many as it may."""
    raise NotImplementedError


@_lua.script
def write_probe(*, probe_key: Key) -> int:
    """Check that the broker runs scripts and writes."""
    raise NotImplementedError
