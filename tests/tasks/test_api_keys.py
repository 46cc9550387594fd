import json
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tasks.api_keys import Account, ApiKeys, console_key
from tasks.errors import AccountNameError, ApiKeysError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "home" / "api-keys.json"


def test_a_key_is_known_and_kept_nowhere(path: Path) -> None:
    accounts = ApiKeys(path)
    key = accounts.add("front", "acme")
    assert key.startswith("twk_")
    assert len(key) == 47
    assert accounts.of_key(key) == Account("front", "acme")
    assert key not in path.read_text("utf-8")
    assert key[4:] not in path.read_text("utf-8")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [it.name for it in path.parent.iterdir() if it.suffix != ".lock"] == ["api-keys.json"]


@pytest.mark.parametrize("key", ["", "twk_", "twk_" + "a" * 43, "x" * 9999, "twk_\ud800", "\x00"])
def test_what_is_no_key_is_nobodys(path: Path, key: str) -> None:
    accounts = ApiKeys(path)
    accounts.add("front", "acme")
    assert accounts.of_key(key) is None


def test_an_operator_sees_all_and_a_tenant_its_own() -> None:
    assert Account("o", None).sees("zoo")
    assert Account("a", "acme").sees("acme")
    assert not Account("a", "acme").sees("zoo")


def test_a_change_by_another_process_counts_at_once(path: Path) -> None:
    reader, writer = ApiKeys(path), ApiKeys(path)
    key = writer.add("front", "acme")
    assert reader.of_key(key) is not None
    writer.revoke("front")
    assert reader.of_key(key) is None
    path.unlink()
    assert reader.entries() == []


@pytest.mark.parametrize(
    ("name", "tenant"), [("", "acme"), ("../x", "acme"), ("a b", None), ("a", ""), ("a", "a/b")]
)
def test_names_that_would_not_be_safe_are_refused(
    path: Path, name: str, tenant: str | None
) -> None:
    with pytest.raises(AccountNameError, match="letters, digits"):
        ApiKeys(path).add(name, tenant)


def test_a_name_is_one_keys_only(path: Path) -> None:
    accounts = ApiKeys(path)
    accounts.add("front", "acme")
    with pytest.raises(AccountNameError, match="revoke it first"):
        accounts.add("front", "zoo")
    with pytest.raises(AccountNameError, match="no key other"):
        accounts.revoke("other")


def test_keys_that_are_made_at_once_are_all_kept(path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        keys = list(pool.map(lambda i: ApiKeys(path).add(f"k{i}", "acme"), range(8)))
    assert all(ApiKeys(path).of_key(key) for key in keys)


@pytest.mark.parametrize("text", ["", "{}", "[1]", '[{"name": "x"}]', "\x00"])
def test_a_damaged_file_lets_nobody_in_and_says_which_it_is(path: Path, text: str) -> None:
    path.parent.mkdir()
    path.write_text(text, "utf-8")
    with pytest.raises(ApiKeysError, match="file of API keys"):
        ApiKeys(path).of_key("twk_" + "a" * 43)


def test_this_machines_operator_has_a_key_that_stays_the_same(path: Path) -> None:
    accounts, kept = ApiKeys(path), path.parent / "console-key"
    console_key(accounts, kept)
    key = kept.read_text("utf-8").strip()
    assert accounts.of_key(key) == Account("console", None)
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    console_key(accounts, kept)
    assert kept.read_text("utf-8").strip() == key


def test_a_key_of_this_machine_that_is_worth_nothing_is_made_anew(path: Path) -> None:
    accounts, kept = ApiKeys(path), path.parent / "console-key"
    console_key(accounts, kept)
    old = kept.read_text("utf-8").strip()
    accounts.revoke("console")
    console_key(accounts, kept)
    assert accounts.of_key(kept.read_text("utf-8").strip()) is not None
    assert accounts.of_key(old) is None
    kept.unlink()
    console_key(accounts, kept)
    assert len(json.loads(path.read_text("utf-8"))) == 1
