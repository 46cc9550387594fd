import json
import stat
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest

import tasks.access.api_keys
from tasks.access.api_keys import ApiKeys, Caller, KeyEntry, Scope, ensure_console_key
from tasks.errors import ApiKeyNameError, ApiKeysError, UsageError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "home" / "api-keys.json"


def test_only_the_digest_of_a_key_is_stored(path: Path) -> None:
    api_keys = ApiKeys(path)
    key = api_keys.create("front", "acme")
    assert key.startswith("twk_")
    assert len(key) == 47
    assert api_keys.find(key) == Caller("front", "acme")
    assert key not in path.read_text("utf-8")
    assert key[4:] not in path.read_text("utf-8")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [it.name for it in path.parent.iterdir() if it.suffix != ".lock"] == ["api-keys.json"]


@pytest.mark.parametrize("key", ["", "twk_", "twk_" + "a" * 43, "x" * 9999, "twk_\ud800", "\x00"])
def test_a_malformed_or_unknown_key_has_no_owner(path: Path, key: str) -> None:
    api_keys = ApiKeys(path)
    api_keys.create("front", "acme")
    assert api_keys.find(key) is None


def test_operators_see_all_tenants_and_tenants_themselves() -> None:
    assert Caller("o", None).sees("zoo")
    assert Caller("a", "acme").sees("acme")
    assert not Caller("a", "acme").sees("zoo")


def test_changes_by_another_process_take_effect_at_once(path: Path) -> None:
    reader, writer = ApiKeys(path), ApiKeys(path)
    key = writer.create("front", "acme")
    assert reader.find(key) is not None
    writer.revoke("front")
    assert reader.find(key) is None
    path.unlink()
    assert reader.entries() == []


@pytest.mark.parametrize(
    ("name", "tenant"), [("", "acme"), ("../x", "acme"), ("a b", None), ("a", ""), ("a", "a/b")]
)
def test_unsafe_names_are_refused(path: Path, name: str, tenant: str | None) -> None:
    with pytest.raises(UsageError, match="letters, digits"):
        ApiKeys(path).create(name, tenant)


def test_names_are_unique(path: Path) -> None:
    api_keys = ApiKeys(path)
    api_keys.create("front", "acme")
    with pytest.raises(ApiKeyNameError, match="revoke it first"):
        api_keys.create("front", "zoo")
    with pytest.raises(ApiKeyNameError, match="no key other"):
        api_keys.revoke("other")


def test_concurrently_created_keys_are_all_stored(path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        keys = list(pool.map(lambda i: ApiKeys(path).create(f"k{i}", "acme"), range(8)))
    assert all(ApiKeys(path).find(key) for key in keys)


@pytest.mark.parametrize("text", ["", "{}", "[1]", '[{"name": "x"}]', "\x00"])
def test_a_damaged_file_refuses_every_key_and_is_named(path: Path, text: str) -> None:
    path.parent.mkdir()
    path.write_text(text, "utf-8")
    with pytest.raises(ApiKeysError, match="file of API keys"):
        ApiKeys(path).find("twk_" + "a" * 43)


def test_the_console_key_stays_the_same(path: Path) -> None:
    api_keys, key_file = ApiKeys(path), path.parent / "console-key"
    ensure_console_key(api_keys, key_file)
    key = key_file.read_text("utf-8").strip()
    assert api_keys.find(key) == Caller("console", None)
    assert stat.S_IMODE(key_file.stat().st_mode) == 0o600
    ensure_console_key(api_keys, key_file)
    assert key_file.read_text("utf-8").strip() == key


def test_an_invalid_console_key_is_replaced(path: Path) -> None:
    api_keys, key_file = ApiKeys(path), path.parent / "console-key"
    ensure_console_key(api_keys, key_file)
    old = key_file.read_text("utf-8").strip()
    api_keys.revoke("console")
    ensure_console_key(api_keys, key_file)
    assert api_keys.find(key_file.read_text("utf-8").strip()) is not None
    assert api_keys.find(old) is None
    key_file.unlink()
    ensure_console_key(api_keys, key_file)
    assert len(json.loads(path.read_text("utf-8"))) == 1


def test_an_expired_key_has_no_owner_and_a_reason(path: Path) -> None:
    api_keys = ApiKeys(path)
    key = api_keys.create("front", "acme", expires_in=timedelta(days=90))
    caller = api_keys.find(key)
    assert caller is not None
    assert caller.expires is not None
    assert not caller.expires_soon
    expire(path, datetime.now(UTC) + timedelta(days=2))
    assert ApiKeys(path).entries()[0].caller.expires_soon
    expire(path, datetime(2026, 1, 2, 3, 4, tzinfo=UTC))
    assert api_keys.find(key) is None
    assert api_keys.find_by_digest(api_keys.entries()[0].sha256) is None
    assert api_keys.why_refused(key) == (
        "API key front expired at 2026-01-02 03:04 UTC; get a new one"
    )
    assert api_keys.why_refused("twk_" + "a" * 43) == "unknown API key"


def expire(path: Path, at: datetime) -> None:
    [entry] = json.loads(path.read_text("utf-8"))
    path.write_text(json.dumps([{**entry, "expires": at.isoformat()}]), "utf-8")


@pytest.mark.parametrize("days", [0, -1, 3651])
def test_impossible_lifetimes_are_refused(path: Path, days: int) -> None:
    with pytest.raises(UsageError, match="3650 days"):
        ApiKeys(path).create("front", None, expires_in=timedelta(days=days))


def test_keys_have_the_scopes_of_their_kind(path: Path) -> None:
    api_keys = ApiKeys(path)
    with pytest.raises(UsageError, match="only an operator's key"):
        api_keys.create("front", "acme", scopes=[Scope.ADMIN])
    reader = api_keys.find(api_keys.create("r", "acme", scopes=[Scope.JOBS_READ]))
    assert reader is not None
    assert [scope for scope in Scope if reader.allows(scope)] == [Scope.JOBS_READ]
    assert [scope for scope in Scope if not Caller("a", "acme").allows(scope)] == [Scope.ADMIN]
    assert all(Caller("o", None).allows(scope) for scope in Scope)


def test_files_of_earlier_versions_are_read(path: Path) -> None:
    path.parent.mkdir()
    entry = {"name": "old", "tenant": None, "sha256": "0" * 64, "created": "2026-01-01T00:00:00Z"}
    path.write_text(json.dumps([entry]), "utf-8")
    assert ApiKeys(path).find_by_digest("0" * 64) == Caller("old", None)


def test_a_slow_reader_does_not_bring_a_revoked_key_back(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    api_keys = ApiKeys(path)
    key = api_keys.create("front", "acme")
    has_read, may_go_on = threading.Event(), threading.Event()
    slow = threading.Thread(target=api_keys.find, args=(key,))
    parse = tasks.access.api_keys._ENTRIES.validate_json

    def parse_slowly(text: bytes) -> tuple[KeyEntry, ...]:
        entries = parse(text)
        if threading.current_thread() is slow:
            has_read.set()
            may_go_on.wait(10)
        return entries

    class Interrupted(ApiKeys):
        def __setattr__(self, name: str, value: object) -> None:
            super().__setattr__(name, value)
            if has_read.is_set() and not may_go_on.is_set():
                may_go_on.set()
                slow.join()

    monkeypatch.setattr(
        tasks.access.api_keys, "_ENTRIES", SimpleNamespace(validate_json=parse_slowly)
    )
    api_keys.__class__ = Interrupted
    slow.start()
    assert has_read.wait(10)
    ApiKeys(path).revoke("front")
    api_keys.entries()
    assert may_go_on.is_set()
    assert api_keys.find(key) is None
