import json
import time
from datetime import timedelta
from pathlib import Path

import pytest
from redis import Redis

from tasks.errors import StoreError
from tasks.state.audit import Action, AuditLog
from tasks.state.keys import AUDIT
from tasks.store import Store
from worker.maintenance import audit_export
from worker.maintenance.audit_export import AuditExport

MONTH = timedelta(days=30)
DAY_MS = 86_400_000


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path.as_uri())


@pytest.fixture
def export(redis_client: Redis, store: Store) -> AuditExport:
    return AuditExport(redis_client, store, MONTH)


def add(client: Redis, subject: str, days_ago: int = 0, number: int = 1) -> None:
    today_ms = time.time_ns() // 1_000_000 // DAY_MS * DAY_MS
    entry = {"actor": "key a", "action": "job.pause", "subject": subject}
    position = f"{today_ms - days_ago * DAY_MS}-{number}"
    client.xadd(AUDIT, {"entry": json.dumps(entry)}, id=position)


def subjects(store: Store) -> list[list[str]]:
    parts = [store.get(key).decode().splitlines() for key in store.keys("audit")]
    return [[json.loads(line)["subject"] for line in lines] for lines in parts]


def test_each_finished_day_is_exported_once(
    export: AuditExport, redis_client: Redis, store: Store
) -> None:
    assert export.export() == []
    add(redis_client, "one", days_ago=3)
    add(redis_client, "two", days_ago=3, number=2)
    add(redis_client, "three", days_ago=1)
    add(redis_client, "today")
    keys = export.export()
    assert keys == store.keys("audit")
    assert all(key.startswith("audit/2") and key.endswith(".jsonl") for key in keys)
    assert subjects(store) == [["one", "two"], ["three"]]
    assert export.export() == []


def test_a_repeated_export_changes_no_object(
    export: AuditExport, redis_client: Redis, store: Store
) -> None:
    add(redis_client, "one", days_ago=1)
    [key] = export.export()
    store.put(key, b"as it was\n")
    redis_client.delete("training:audit:exported")
    assert export.export() == [key]
    assert store.get(key) == b"as it was\n"


def test_a_full_part_is_exported_on_the_same_day(
    export: AuditExport, redis_client: Redis, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit_export, "_PART", 3)
    audit = AuditLog(redis_client, MONTH)
    for number in range(7):
        audit.record("key a", Action.JOB_PAUSE, str(number))
    export.export()
    assert subjects(store) == [["0", "1", "2"], ["3", "4", "5"]]


def test_an_unavailable_store_delays_the_export(
    redis_client: Redis, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    export = AuditExport(redis_client, store, MONTH)
    add(redis_client, "one", days_ago=1)

    def fail(*_: object) -> bool:
        raise StoreError("cannot write")

    with monkeypatch.context() as patched:
        patched.setattr(store, "put_if_absent", fail)
        with pytest.raises(StoreError):
            export.export()
    assert len(export.export()) == 1
