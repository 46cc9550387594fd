from pathlib import Path

import pytest

from tasks.cache.packs import DamagedPackError, pack_id, read_entry, read_header, verify_pack
from tasks.errors import StoreError
from tasks.store import Store, pack_key
from tests.tasks.cache.pack_files import put_pack

DIGESTS = [character * 64 for character in "abc"]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store((tmp_path / "store").as_uri())


def test_entries_are_read_one_by_one(store: Store) -> None:
    stored = put_pack(store, "latents", DIGESTS)
    assert stored.key == pack_key("latents", pack_id(DIGESTS))
    header = read_header(store, stored.key)
    assert list(header) == DIGESTS
    whole = store.get(stored.key)
    for entry in header.values():
        assert read_entry(store, stored.key, entry) == whole[entry.start : entry.end]
    verify_pack(store, stored.key)


def test_every_changed_or_truncated_byte_is_detected(store: Store) -> None:
    key = put_pack(store, "text", DIGESTS, size=16).key
    whole, sound = store.get(key), read_header(store, key)
    for at in range(len(whole)):
        store.put(key, whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :])
        try:
            verify_pack(store, key)
        except DamagedPackError:
            continue
        # Only if the header has the same contents in other bytes.
        assert read_header(store, key) == sound
    for end in range(len(whole)):
        store.put(key, whole[:end])
        with pytest.raises(DamagedPackError):
            verify_pack(store, key)


def test_a_failing_store_is_no_damage(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    key = put_pack(store, "text", DIGESTS).key
    header = read_header(store, key)

    def fail(*_: object) -> bytes:
        raise StoreError("the network is down")

    monkeypatch.setattr(store, "get_range", fail)
    with pytest.raises(StoreError, match="network is down"):
        read_entry(store, key, header[DIGESTS[0]])
    with pytest.raises(StoreError, match="network is down"):
        verify_pack(store, key)
