"""Export of the audit log to the store, where entries outlive the broker.

The parts of a day are ``audit/DAY/FIRST_ENTRY.jsonl``. A part is written once a day is over, or as
soon as it is full: so a flood of entries is exported before it could displace others.
"""

import logging
import time
from datetime import timedelta
from typing import cast

from redis import Redis

from tasks.clock import broker_time
from tasks.state.audit import AuditEntry, read_entries
from tasks.state.keys import AUDIT, AUDIT_EXPORTED
from tasks.store import Store, audit_key

logger = logging.getLogger(__name__)

_INTERVAL_S = 60.0
# Some 5 MB at most.
_PART = 5_000
_DAY_S = 86_400


class AuditExport:
    """Writes finished parts of the audit log to the store.

    Writing is idempotent: the same entries have the same key, and an existing object stays.

    Args:
        client: A connection to the broker that decodes responses.
        store: The store.
        retention: How long the log keeps entries, and the broker the position of the export.
    """

    def __init__(self, client: Redis, store: Store, retention: timedelta) -> None:
        self._redis, self._store, self._retention = client, store, retention
        self._next_at = 0.0

    def export_if_due(self) -> None:
        """Export if the last time was a minute ago."""
        if time.monotonic() >= self._next_at:
            self._next_at = time.monotonic() + _INTERVAL_S
            self.export()

    def export(self) -> list[str]:
        """Write all finished parts; return their keys.

        Raises:
            StoreError: The store is unavailable; the next call continues.
        """
        written = []
        while part := self._next_part():
            key = audit_key(f"{part[0].at:%Y-%m-%d}", part[0].id)
            lines = (f"{entry.model_dump_json()}\n" for entry in part)
            if self._store.put_if_absent(key, "".join(lines).encode()):
                logger.info("exported %d entries of the audit log to %s", len(part), key)
            self._redis.set(AUDIT_EXPORTED, part[-1].id, ex=self._retention)
            written.append(key)
        return written

    def _next_part(self) -> list[AuditEntry]:
        """Return the entries of the next part; none unless it is finished."""
        exported = cast("str | None", self._redis.get(AUDIT_EXPORTED)) or "0"
        today = broker_time(self._redis) // _DAY_S
        entries = self._after(exported, 1)
        if not entries:
            return []
        is_full = self._redis.xlen(AUDIT) >= _PART
        if not is_full and _day(entries[0]) == today:
            return []
        entries = self._after(exported, _PART)
        part = [entry for entry in entries if _day(entry) == _day(entries[0])]
        return part if len(part) == _PART or _day(part[0]) < today else []

    def _after(self, position: str, count: int) -> list[AuditEntry]:
        return read_entries(self._redis.xrange(AUDIT, f"({position}", "+", count=count))


def _day(entry: AuditEntry) -> float:
    return entry.at.timestamp() // _DAY_S
