from concurrent.futures import ThreadPoolExecutor
from inspect import signature
from pathlib import Path
from typing import Any

import obstore
import pytest

from tasks import store as store_module
from tasks.errors import StoreError
from tasks.jobs.pipeline import FLEET_FOLDERS
from tasks.store import Store, checkpoint_prefix, output_prefix


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store((tmp_path / "a store").as_uri())


def test_no_job_publishes_in_a_folder_of_the_fleet() -> None:
    functions = [
        value for name, value in vars(store_module).items() if name.endswith(("_key", "_prefix"))
    ]
    arguments = {
        it: {name: 1 if name == "step" else "x" for name in signature(it).parameters}
        for it in functions
        if it is not output_prefix
    }
    folders = {it(**given).partition("/")[0] for it, given in arguments.items()}
    assert folders == FLEET_FOLDERS


def test_a_written_object_is_read_and_listed(store: Store, tmp_path: Path) -> None:
    store.put("a/b", b"one")
    (tmp_path / "file").write_bytes(b"two")
    store.put("a/c", tmp_path / "file")
    assert (store.get("a/b"), store.get("a/c")) == (b"one", b"two")
    assert store.keys("a") == ["a/b", "a/c"]
    assert store.exists("a/b")
    assert not store.exists("a/d")
    assert Path(store.locate("a/b")).read_bytes() == b"one"


def test_put_if_absent_keeps_the_first_object(store: Store) -> None:
    assert store.put_if_absent("manifest", b"first")
    assert not store.put_if_absent("manifest", b"second")
    assert store.get("manifest") == b"first"


def test_an_artifact_has_its_digest_and_size(store: Store, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"weights")
    artifact = store.put_artifact("jobs/x/lora.safetensors", tmp_path / "file")
    assert (artifact.name, artifact.size) == ("lora.safetensors", 7)
    assert artifact.sha256.startswith("9a129038")


def test_copy_and_delete_are_idempotent(store: Store) -> None:
    store.put("a", b"1")
    store.copy("a", "b")
    store.copy("a", "b")
    store.delete(["a", "a", "never"])
    assert store.keys("") == ["b"]


def test_objects_are_removed_in_one_request(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    requests: list[object] = []
    delete = obstore.delete

    def counted(target: Any, keys: Any) -> None:
        requests.append(keys)
        delete(target, keys)

    monkeypatch.setattr(obstore, "delete", counted)
    keys = [f"cache/{number}" for number in range(100)]
    for key in keys:
        store.put(key, b"1")
    store.delete(keys)
    store.delete([])
    assert requests == [keys]
    assert store.keys("") == []


def test_missing_objects_keep_no_others_from_removal(store: Store) -> None:
    keys = [f"cache/{number}" for number in range(100)]
    for key in keys[::2]:
        store.put(key, b"1")
    store.delete(keys)
    assert store.keys("") == []


def test_a_missing_object_is_reported_in_one_line(store: Store) -> None:
    with pytest.raises(StoreError, match="holds no nothing") as caught:
        store.get("nothing")
    assert "\n" not in str(caught.value)
    with pytest.raises(StoreError, match="cannot copy nothing"):
        store.copy("nothing", "else")


@pytest.mark.parametrize("url", ["nonsense", "ftp://host/x", "s3:/"])
def test_a_malformed_url_is_an_error(url: str) -> None:
    with pytest.raises(StoreError, match="cannot open the store") as caught:
        Store(url)
    assert not caught.value.retryable


def test_one_of_many_concurrent_writers_wins(store: Store) -> None:
    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(lambda n: store.put_if_absent("k", b"%d" % n), range(32)))
    assert won.count(True) == 1
    assert store.get("k") == b"%d" % won.index(True)


def test_readers_see_whole_writes(store: Store) -> None:
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


def test_keys_are_listed_by_folder_not_by_name_prefix(store: Store) -> None:
    for key in ("j/2", "j/1/x", "j1", "k/1"):
        store.put(key, b"")
    assert store.keys("j") == ["j/1/x", "j/2"]
    assert store.keys("nothing") == []


def test_an_unavailable_folder_is_reported_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StoreError, match="cannot open the store") as caught:
        Store((tmp_path / "file" / "store").as_uri())
    assert "\n" not in str(caught.value)
    assert caught.value.retryable  # it may be mounted later


def test_key_prefixes_of_checkpoints_and_outputs() -> None:
    assert checkpoint_prefix("j", 10, "1") != checkpoint_prefix("j", 10, "2")
    assert output_prefix("j", None) == "outputs/j"
    assert output_prefix("j", "mine") == "mine/j"
