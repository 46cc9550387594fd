"""Eviction of cache packs, damaged or long unused, and of old captions that models have written."""

from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from itertools import islice

from tasks.cache.index import Pack, PackIndex
from tasks.cache.packs import DamagedPackError, verify_pack
from tasks.store import CAPTIONS, Store

# Concurrent requests to a store that may be far away.
_THREADS = 16
# Jobs touch the packs that they use every ten minutes.
_UNUSED_AFTER = timedelta(hours=1)


def drop(index: PackIndex, store: Store, keys: Collection[str]) -> None:
    """Remove packs; jobs that need their entries encode them again."""
    if keys:
        # In this order: the index never names a removed pack.
        index.remove(keys)
        store.delete(keys)


def drop_where(
    index: PackIndex, store: Store, keys: Collection[str], is_bad: Callable[[str], bool]
) -> list[str]:
    """Remove the packs for which ``is_bad`` is true, and return them."""
    with ThreadPoolExecutor(_THREADS) as pool:
        bad = [key for key, flag in zip(keys, pool.map(is_bad, keys), strict=True) if flag]
    drop(index, store, bad)
    return bad


def drop_damaged(index: PackIndex, store: Store, keys: Collection[str]) -> list[str]:
    """Verify packs; remove and return the damaged and missing ones."""

    def is_damaged(key: str) -> bool:
        try:
            verify_pack(store, key)
        except DamagedPackError:
            return True
        return False

    return drop_where(index, store, keys, is_damaged)


def drop_captions(store: Store, written_before: datetime, *, dry_run: bool) -> int:
    """Remove captions that a model has written long ago, and return their number.

    A later run over the same images writes them again. Nothing records when one was last used.
    """
    old = (it.key for it in store.iterate(CAPTIONS) if it.modified < written_before)
    count = 0
    while keys := list(islice(old, 1000)):
        count += len(keys)
        if not dry_run:
            store.delete(keys)
    return count


def unused(
    packs: Sequence[Pack],
    *,
    max_age: timedelta | None,
    max_bytes: int | None,
    now: float,
) -> list[Pack]:
    """Return the packs to remove, so that the cache keeps its limits.

    Packs used within the last hour stay in any case: a job may be reading them.

    Args:
        packs: All packs, the least recently used first.
        max_age: Packs unused for longer are removed; None is no limit.
        max_bytes: The least recently used packs above this size are removed; None is no limit.
        now: The time by the index's clock.
    """
    free = [pack for pack in packs if now - pack.used_at > _UNUSED_AFTER.total_seconds()]
    surplus = sum(pack.size for pack in packs) - max_bytes if max_bytes is not None else 0
    evicted = []
    for pack in free:
        is_old = max_age is not None and now - pack.used_at > max_age.total_seconds()
        if is_old or surplus > 0:
            evicted.append(pack)
            surplus -= pack.size
    return evicted
