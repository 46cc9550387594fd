import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tasks.cache.eviction import drop_captions, unused
from tasks.cache.index import Pack
from tasks.store import CAPTIONS, Store, caption_key

DAY_S = 86400.0
NOW = 100 * DAY_S
# Used longest ago first; the last one a minute ago.
PACKS = [
    Pack("a", 10, NOW - 40 * DAY_S),
    Pack("b", 10, NOW - 20 * DAY_S),
    Pack("c", 10, NOW - 2 * DAY_S),
    Pack("d", 10, NOW - 60),
]


@pytest.mark.parametrize(
    ("days", "size", "going"),
    [
        (None, None, ""),
        (30, None, "a"),
        (10, None, "ab"),
        (0, None, "abc"),
        (None, 40, ""),
        (None, 39, "a"),
        (None, 15, "abc"),
        (None, 0, "abc"),
        (30, 25, "ab"),
    ],
)
def test_the_least_recently_used_unused_packs_are_evicted(
    days: float | None, size: int | None, going: str
) -> None:
    max_age = None if days is None else timedelta(days=days)
    found = unused(PACKS, max_age=max_age, max_bytes=size, now=NOW)
    assert "".join(pack.key for pack in found) == going


def test_old_captions_of_models_are_removed(tmp_path: Path) -> None:
    store = Store(tmp_path.as_uri())
    old, new = (caption_key("model", name * 32) for name in ("ab", "cd"))
    for key in (old, new):
        store.put(key, b"a cat")
    store.put("uploads/acme/images.zip", b"not a caption")
    for key in (old, "uploads/acme/images.zip"):
        os.utime(tmp_path / key, (0, 0))
    yesterday = datetime.now(UTC) - timedelta(days=1)
    assert drop_captions(store, yesterday, dry_run=True) == 1
    assert store.exists(old)
    assert drop_captions(store, yesterday, dry_run=False) == 1
    assert store.keys(CAPTIONS) == [new]
    assert store.exists("uploads/acme/images.zip")
