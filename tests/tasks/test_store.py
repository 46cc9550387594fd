from pathlib import Path

import pytest

from tasks.errors import StoreError
from tasks.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store((tmp_path / "a store").as_uri())


def test_what_is_put_is_read_back_and_found(store: Store, tmp_path: Path) -> None:
    store.put("a/b", b"one")
    (tmp_path / "file").write_bytes(b"two")
    store.put("a/c", tmp_path / "file")
    assert (store.get("a/b"), store.get("a/c")) == (b"one", b"two")
    assert store.keys("a") == ["a/b", "a/c"]
    assert store.exists("a/b")
    assert not store.exists("a/d")
    assert Path(store.locate("a/b")).read_bytes() == b"one"


def test_the_first_of_two_writers_wins_where_there_may_be_one(store: Store) -> None:
    assert store.put_if_absent("manifest", b"first")
    assert not store.put_if_absent("manifest", b"second")
    assert store.get("manifest") == b"first"


def test_an_artifact_is_told_with_its_digest(store: Store, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"weights")
    artifact = store.put_artifact("jobs/x/lora.safetensors", tmp_path / "file")
    assert (artifact.name, artifact.size) == ("lora.safetensors", 7)
    assert artifact.sha256.startswith("9a129038")


def test_copying_and_deleting_can_be_repeated(store: Store) -> None:
    store.put("a", b"1")
    store.copy("a", "b")
    store.copy("a", "b")
    store.delete(["a", "a", "never"])
    assert store.keys("") == ["b"]


def test_what_is_missing_is_told_in_one_line(store: Store) -> None:
    with pytest.raises(StoreError, match="cannot read nothing") as caught:
        store.get("nothing")
    assert "\n" not in str(caught.value)
    with pytest.raises(StoreError, match="cannot copy nothing"):
        store.copy("nothing", "else")


@pytest.mark.parametrize("url", ["nonsense", "ftp://host/x", "s3:/"])
def test_a_url_that_is_no_store_is_told(url: str) -> None:
    with pytest.raises(StoreError, match="cannot open the store"):
        Store(url)
