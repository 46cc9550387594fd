from datetime import timedelta

import pytest

from tasks.cache.eviction import unused
from tasks.cache.index import Pack

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
