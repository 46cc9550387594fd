import hashlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tasks.errors import StoreError
from tasks.store import Store, checkpoint_prefix, image_key, output_prefix


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "my store"


@pytest.fixture
def store(folder: Path) -> Store:
    return Store(folder.as_uri())


def test_what_is_put_is_got_and_is_a_file_in_the_folder(store: Store, folder: Path) -> None:
    store.put("a/b", b"one")
    assert store.get("a/b") == b"one"
    assert store.local_path("a/b") == folder / "a" / "b"
    assert store.locate("a/b") == str(folder / "a" / "b")
    assert (folder / "a" / "b").read_bytes() == b"one"


def test_a_second_put_replaces_and_a_put_if_absent_does_not(store: Store) -> None:
    assert store.put_if_absent("k", b"one") is True
    assert store.put_if_absent("k", b"two") is False
    assert store.get("k") == b"one"
    store.put("k", b"three")
    assert store.get("k") == b"three"


def test_of_many_that_put_if_absent_at_once_one_wins(store: Store) -> None:
    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(lambda n: store.put_if_absent("k", b"%d" % n), range(32)))
    assert won.count(True) == 1
    assert store.get("k") == b"%d" % won.index(True)


def test_nobody_reads_half_of_a_write(store: Store) -> None:
    contents = [bytes([n]) * 2_000_000 for n in range(20)]
    store.put("k", contents[0])
    with ThreadPoolExecutor(2) as pool:
        writes = [pool.submit(store.put, "k", content) for content in contents]
        while not all(write.done() for write in writes):
            assert store.get("k") in contents
    for write in writes:
        write.result()


def test_a_write_leaves_nothing_but_the_object(store: Store, folder: Path) -> None:
    store.put("a/k", b"one")
    store.put("a/k", b"two")
    assert [path.name for path in (folder / "a").iterdir()] == ["k"]
    assert store.keys("") == ["a/k"]


def test_a_file_is_put_with_its_digest_and_size(store: Store, tmp_path: Path) -> None:
    file = tmp_path / "lamp.safetensors"
    file.write_bytes(b"weights")
    first = store.put_artifact("outputs/j/lamp.safetensors", file)
    assert (first.name, first.key) == ("lamp.safetensors", "outputs/j/lamp.safetensors")
    assert (first.sha256, first.size) == (hashlib.sha256(b"weights").hexdigest(), 7)
    assert store.get(first.key) == b"weights"
    assert store.put_artifact("outputs/j/lamp.safetensors", file) == first


@pytest.mark.parametrize(
    "act",
    [lambda store: store.get("no/such"), lambda store: store.copy("no/such", "target")],
    ids=["get", "copy"],
)
def test_a_missing_key_is_an_error_of_one_line_that_names_it(
    store: Store, act: Callable[[Store], object]
) -> None:
    with pytest.raises(StoreError, match="no/such") as caught:
        act(store)
    assert "\n" not in str(caught.value)


def test_whether_a_key_is_there_can_be_asked(store: Store) -> None:
    assert not store.exists("a/k")
    store.put("a/k", b"")
    assert store.exists("a/k")
    assert not store.exists("a")


def test_a_copy_has_the_same_bytes_and_replaces_what_was_there(store: Store) -> None:
    store.put("from", b"one")
    store.put("to", b"old")
    store.copy("from", "to")
    assert (store.get("from"), store.get("to")) == (b"one", b"one")


def test_deleting_takes_those_away_and_those_gone_already_are_no_error(store: Store) -> None:
    for key in ("a/1", "a/2", "b/1"):
        store.put(key, b"")
    store.delete(["a/1", "a/1", "gone"])
    assert store.keys("") == ["a/2", "b/1"]


def test_keys_are_those_below_a_folder_in_order(store: Store) -> None:
    for key in ("j/2", "j/1/x", "j1", "k/1"):
        store.put(key, b"")
    assert store.keys("j") == ["j/1/x", "j/2"]
    assert store.keys("nothing") == []


@pytest.mark.parametrize("url", ["ftp://host/folder", "nonsense", "s3://"])
def test_a_url_of_no_store_is_an_error_of_one_line(url: str) -> None:
    with pytest.raises(StoreError, match="cannot open the store") as caught:
        Store(url)
    assert "\n" not in str(caught.value)
    assert not caught.value.retryable


def test_a_folder_that_cannot_be_made_is_an_error_of_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StoreError, match="cannot open the store") as caught:
        Store((tmp_path / "file" / "store").as_uri())
    assert "\n" not in str(caught.value)


def test_attempts_never_share_a_checkpoint_and_digests_spread_over_folders() -> None:
    assert checkpoint_prefix("j", 10, 1) != checkpoint_prefix("j", 10, 2)
    assert image_key("abcd") == "images/ab/abcd"
    assert output_prefix("j", None) == "outputs/j"
    assert output_prefix("j", "mine") == "mine/j"
