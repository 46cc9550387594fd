from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tasks.errors import StoreError
from tasks.store import Store, checkpoint_prefix, output_prefix


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
    with pytest.raises(StoreError, match="holds no nothing") as caught:
        store.get("nothing")
    assert "\n" not in str(caught.value)
    with pytest.raises(StoreError, match="cannot copy nothing"):
        store.copy("nothing", "else")


@pytest.mark.parametrize("url", ["nonsense", "ftp://host/x", "s3:/"])
def test_a_url_that_is_no_store_is_told(url: str) -> None:
    with pytest.raises(StoreError, match="cannot open the store") as caught:
        Store(url)
    assert not caught.value.retryable


def test_of_many_writers_at_once_one_wins_where_there_may_be_one(store: Store) -> None:
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


def test_a_write_leaves_nothing_but_the_object(store: Store, tmp_path: Path) -> None:
    store.put("a/k", b"one")
    store.put("a/k", b"two")
    assert [path.name for path in (tmp_path / "a store" / "a").iterdir()] == ["k"]


def test_keys_are_those_below_a_folder_and_not_below_its_namesakes(store: Store) -> None:
    for key in ("j/2", "j/1/x", "j1", "k/1"):
        store.put(key, b"")
    assert store.keys("j") == ["j/1/x", "j/2"]
    assert store.keys("nothing") == []


def test_a_folder_that_cannot_be_made_is_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StoreError, match="cannot open the store") as caught:
        Store((tmp_path / "file" / "store").as_uri())
    assert "\n" not in str(caught.value)
    assert caught.value.retryable  # it may be mounted later


def test_attempts_never_share_a_checkpoint_and_outputs_go_where_they_are_wanted() -> None:
    assert checkpoint_prefix("j", 10, 1) != checkpoint_prefix("j", 10, 2)
    assert output_prefix("j", None) == "outputs/j"
    assert output_prefix("j", "mine") == "mine/j"
