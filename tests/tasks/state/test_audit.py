from datetime import timedelta

import pytest
from redis import Redis

from tasks.errors import ErrorCode, JobError
from tasks.state.audit import Action, AuditLog, command_line_actor
from tasks.state.keys import AUDIT


@pytest.fixture
def audit(redis_client: Redis) -> AuditLog:
    return AuditLog(redis_client, timedelta(hours=1))


def test_entries_are_read_newest_first(audit: AuditLog) -> None:
    audit.record("key a", Action.JOB_CANCEL, "one", tenant="acme", save=True)
    audit.record(command_line_actor(), Action.KEY_CREATE, "front")
    created, cancelled = audit.entries()
    assert created.actor.startswith("operator on ")
    assert (created.tenant, created.details) == (None, {})
    assert (cancelled.actor, cancelled.action, cancelled.subject) == ("key a", "job.cancel", "one")
    assert (cancelled.tenant, cancelled.details) == ("acme", {"save": True})
    assert audit.entries(before=created.id) == [cancelled]
    assert audit.entries(limit=1) == [created]


def test_entries_are_filtered(audit: AuditLog) -> None:
    audit.record("key a", Action.JOB_CANCEL, "one", tenant="acme")
    audit.record("key b", Action.JOB_PAUSE, "one", tenant="acme")
    audit.record("key b", Action.KEY_REVOKE, "a", tenant="zoo")
    assert len(audit.entries(action="job")) == 2
    assert len(audit.entries(action="jo")) == 0
    assert [it.action for it in audit.entries(action="job.pause")] == ["job.pause"]
    assert len(audit.entries(actor="key b")) == 2
    assert len(audit.entries(subject="one")) == 2
    assert [it.subject for it in audit.entries(tenant="zoo")] == ["a"]


def test_a_failed_action_has_a_second_entry(audit: AuditLog) -> None:
    def fail() -> None:
        with audit.recording("key a", Action.JOB_PAUSE, "one", tenant="acme"):
            assert audit.entries()[0].details == {}
            raise JobError("it has ended", ErrorCode.INVALID_STATE)

    with pytest.raises(JobError):
        fail()
    failed, tried = audit.entries()
    assert (failed.details, tried.details) == ({"failed": "invalid_state"}, {})


def test_the_log_is_bounded_in_bytes_count_and_time(
    audit: AuditLog, redis_client: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    audit.record("a" * 9999, Action.JOB_PAUSE, "\x1b[2J" * 999, tenant="t" * 999, note="n" * 9999)
    [entry] = audit.entries()
    assert len(entry.model_dump_json()) < 3000
    assert "\x1b" not in entry.subject
    assert 3500 < int(redis_client.ttl(AUDIT)) <= 3600
    monkeypatch.setattr("tasks.state.audit._MAX_ENTRIES", 100)
    for number in range(300):
        audit.record("key a", Action.JOB_PAUSE, str(number))
    assert int(redis_client.xlen(AUDIT)) <= 200
    redis_client.delete(AUDIT)
    redis_client.xadd(AUDIT, {"entry": "{}"}, id="1-1")
    for number in range(100):
        redis_client.xadd(AUDIT, {"entry": "{}"}, id=f"2-{number + 1}")
    audit.record("key a", Action.JOB_PAUSE, "new")
    assert int(redis_client.xlen(AUDIT)) < 100
