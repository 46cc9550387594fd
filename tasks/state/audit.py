"""The audit log: who did what to keys, jobs, quotas and workers.

An entry is written before its action: no action is without one. If the action then fails, a second
entry says so. Entries are kept for ``TRAINING_AUDIT_RETENTION``, and exported to the store.
"""

import json
import logging
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any, cast

from pydantic import BaseModel, ConfigDict, Field
from redis import Redis, RedisError

from tasks.errors import JobError
from tasks.escaping import escaped, shortened
from tasks.state import scripts
from tasks.state.keys import AUDIT

logger = logging.getLogger(__name__)

# Some 50 MB at most. The export reads each entry long before newer ones push it out.
_MAX_ENTRIES = 50_000
_MAX_DETAILS, _MAX_TEXT = 10, 200
_PAGE = 500

Detail = str | int | float | bool | None


class Action(StrEnum):
    """What was done."""

    KEY_CREATE = "key.create"
    KEY_REVOKE = "key.revoke"
    LINK_CREATE = "link.create"
    JOB_CANCEL = "job.cancel"
    JOB_PAUSE = "job.pause"
    JOB_RESUME = "job.resume"
    JOB_PRIORITY = "job.priority"
    JOB_EDIT = "job.edit"
    JOB_DELETE = "job.delete"
    DATASET_DELETE = "dataset.delete"
    DEAD_LETTER_REPLAY = "dead_letter.replay"
    DEAD_LETTER_DISCARD = "dead_letter.discard"
    QUOTA_SET = "quota.set"
    WEBHOOK_SECRET_CREATE = "webhook_secret.create"
    WEBHOOK_SECRET_REVOKE = "webhook_secret.revoke"
    WEBHOOK_REDELIVER = "webhook.redeliver"
    WORKER_DRAIN = "worker.drain"


class AuditEntry(BaseModel):
    """An entry of the audit log; those of newer versions may have more fields."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    id: str
    """Its position in the log: milliseconds since 1970 and a number."""
    at: datetime
    """The broker's time of the entry."""
    actor: str
    """``key NAME``, or ``operator on HOST by the command line``."""
    action: str
    """An ``Action``; newer versions know more of them."""
    subject: str
    """What the action is about: the id of a job, or the name of a key, worker or tenant."""
    tenant: str | None = None
    """The tenant whose job or key it is about."""
    details: dict[str, Detail] = Field(default_factory=dict)
    """More about it; ``failed`` is the reason if the action failed after its first entry."""


class AuditLog:
    """The fleet's audit log.

    Args:
        client: A connection to the broker that decodes responses.
        retention: How long entries are kept.
    """

    def __init__(self, client: Redis, retention: timedelta) -> None:
        self._redis = client
        self._retention_s = int(retention.total_seconds())

    def record(
        self,
        actor: str,
        action: Action,
        subject: str,
        *,
        tenant: str | None = None,
        **details: Detail,
    ) -> str:
        """Record an action; call it before the action, or use ``recording``.

        Args:
            actor: Who acts: ``Caller.actor``, or ``command_line_actor()``.
            action: What is done.
            subject: The id or name of what it is done to.
            tenant: The tenant that it concerns.
            details: What else matters, without secrets. Long texts are cut.

        Returns:
            The entry's id.

        Raises:
            RedisError: The broker is unavailable: do not act.
        """
        assert len(details) <= _MAX_DETAILS
        entry = {
            "actor": _bounded(actor),
            "action": action,
            "subject": _bounded(subject),
            "tenant": _bounded(tenant),
            "details": {
                name: _bounded(value) for name, value in details.items() if value is not None
            },
        }
        position = scripts.record_audit(
            self._redis,
            audit_key=AUDIT,
            retention_s=self._retention_s,
            max_entries=_MAX_ENTRIES,
            entry=json.dumps({name: value for name, value in entry.items() if value}),
        )
        extra = {"tenant": tenant}
        logger.info("%s of %s by %s", action, entry["subject"], entry["actor"], extra=extra)
        return position

    @contextmanager
    def recording(
        self,
        actor: str,
        action: Action,
        subject: str,
        *,
        tenant: str | None = None,
        **details: Detail,
    ) -> Iterator[None]:
        """Record an action before the block that acts, and the failure if the block raises one.

        See ``record`` for arguments and errors.
        """
        self.record(actor, action, subject, tenant=tenant, **details)
        try:
            yield
        except Exception as error:
            reason = error.code if isinstance(error, JobError) else type(error).__name__
            try:
                self.record(actor, action, subject, tenant=tenant, failed=reason, **details)
            except RedisError:
                logger.warning("cannot record that %s of %s failed", action, subject)
            raise

    def entries(
        self,
        *,
        limit: int = 100,
        before: str | None = None,
        actor: str | None = None,
        action: str | None = None,
        subject: str | None = None,
        tenant: str | None = None,
    ) -> list[AuditEntry]:
        """Return the newest entries that match, newest first.

        Args:
            limit: Maximum number of entries.
            before: The id of the entry that ends the page before.
            actor: Text in the actor.
            action: The action, or its first part, such as ``key``.
            subject: The subject.
            tenant: The tenant.
        """

        def matches(entry: AuditEntry) -> bool:
            return (
                (actor is None or actor in entry.actor)
                and (action is None or f"{entry.action}.".startswith(f"{action}."))
                and subject in (None, entry.subject)
                and tenant in (None, entry.tenant)
            )

        found: list[AuditEntry] = []
        end = "+" if before is None else f"({before}"
        while len(found) < limit:
            page = read_entries(self._redis.xrevrange(AUDIT, end, "-", count=_PAGE))
            found += filter(matches, page)
            if len(page) < _PAGE:
                break
            end = f"({page[-1].id}"
        return found[:limit]


def newest_actor(client: Redis, action: Action, subject: str) -> str | None:
    """Return who last did something; None if it is not among the newest entries of the log.

    For a line of a log: an unavailable broker is no error.
    """
    try:
        newest = read_entries(client.xrevrange(AUDIT, count=_PAGE))
    except RedisError:
        return None
    actors = (entry.actor for entry in newest if (entry.action, entry.subject) == (action, subject))
    return next(actors, None)


def read_entries(page: object) -> list[AuditEntry]:
    """Return the entries of a page of the stream."""
    entries = []
    for position, fields in cast("list[tuple[str, dict[str, str]]]", page):
        at = datetime.fromtimestamp(int(position.partition("-")[0]) / 1000, UTC)
        known: dict[str, Any] = json.loads(fields["entry"])
        entries.append(AuditEntry.model_validate({"id": position, "at": at, **known}))
    return entries


def command_line_actor() -> str:
    """Return the actor of a command on this machine."""
    return f"operator on {socket.gethostname()} by the command line"


def _bounded(value: Any) -> Any:
    return escaped(shortened(value, _MAX_TEXT)) if isinstance(value, str) else value
