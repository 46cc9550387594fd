import json
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tasks.api_keys import ApiKeys, Caller, ensure_console_key
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
