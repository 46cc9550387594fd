import stat
from datetime import timedelta
from pathlib import Path

import pytest
from redis import ConnectionError as LostConnectionError
from redis import Redis

from tasks.access.api_keys import Scope
from tasks.access.key_changes import KeyChanges
from tasks.errors import ApiKeyNameError
from tasks.state.audit import AuditLog


@pytest.fixture
def audit(redis_client: Redis) -> AuditLog:
    return AuditLog(redis_client, timedelta(hours=1))


def test_changes_reach_the_audit_log_once(tmp_path: Path, audit: AuditLog) -> None:
    changes = KeyChanges(tmp_path / "api-keys.json")
    api_keys = changes.api_keys("operator on host")
    key = api_keys.create(
        "front", "acme", expires_in=timedelta(days=1), scopes=[Scope.FILES, Scope.JOBS_READ]
    )
    api_keys.revoke("front")
    with pytest.raises(ApiKeyNameError):
        api_keys.revoke("front")
    file = tmp_path / "api-keys.changes"
    assert key not in file.read_text()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    changes.forward(audit)
    changes.forward(audit)
    revoked, created = audit.entries()
    assert (created.action, created.subject, created.tenant) == ("key.create", "front", "acme")
    assert created.actor == "operator on host"
    assert created.details["scopes"] == "files jobs:read"
    assert {"at", "expires"} <= created.details.keys()
    assert revoked.action == "key.revoke"


def test_changes_wait_for_an_unavailable_broker(
    tmp_path: Path, audit: AuditLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lose(*_: object, **__: object) -> str:
        raise LostConnectionError("away")

    changes = KeyChanges(tmp_path / "api-keys.json")
    changes.api_keys("operator on host").create("front", None)
    with monkeypatch.context() as patched:
        patched.setattr(audit, "record", lose)
        with pytest.raises(LostConnectionError):
            changes.forward(audit)
    changes.forward(audit)
    assert [entry.subject for entry in audit.entries()] == ["front"]


def test_a_line_that_was_not_written_whole_stops_no_other(
    tmp_path: Path, audit: AuditLog, caplog: pytest.LogCaptureFixture
) -> None:
    changes = KeyChanges(tmp_path / "api-keys.json")
    (tmp_path / "api-keys.changes").write_text('{"at": \n')
    changes.api_keys("operator on host").create("front", None)
    changes.forward(audit)
    assert "not written whole" in caplog.text
    assert [entry.subject for entry in audit.entries()] == ["front"]
