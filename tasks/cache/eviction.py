"""The cache's upkeep: dropping packs that are damaged, and those that nobody has used for long."""

import time
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

from tasks.cache.index import CacheRegistry, Pack
from tasks.cache.packs import DamagedPackError, verify_pack
from tasks.store import Store

# Requests at a time to a store that may be far away.
_THREADS = 16
# Jobs note every ten minutes that they still use their packs.
_SURELY_UNUSED = timedelta(hours=1)


def drop(registry: CacheRegistry, store: Store, keys: Collection[str]) -> None:
    """Remove packs; whoever needs an entry of them makes it anew."""
    if keys:
        # In this order: nobody is sent to a pack that is going.
        registry.forget(keys)
        store.delete(keys)


def drop_where(
    registry: CacheRegistry, store: Store, keys: Collection[str], is_bad: Callable[[str], bool]
) -> list[str]:
    """Remove those packs of which something is true, and say which."""
    with ThreadPoolExecutor(_THREADS) as pool:
        bad = [key for key, flag in zip(keys, pool.map(is_bad, keys), strict=True) if flag]
    drop(registry, store, bad)
    return bad


def drop_damaged(registry: CacheRegistry, store: Store, keys: Collection[str]) -> list[str]:
    """Read packs whole, and remove those that are damaged or gone.

    Returns:
        Those.
    """

    def is_damaged(key: str) -> bool:
        try:
            verify_pack(store, key)
        except DamagedPackError:
            return True
        return False

    return drop_where(registry, store, keys, is_damaged)


def unused(
    packs: Sequence[Pack],
    *,
    max_age: timedelta | None,
    max_bytes: int | None,
    now: float | None = None,
) -> list[Pack]:
    """The packs to remove so that the cache keeps within limits.

    Args:
        packs: All, that used longest ago first.
        max_age: None is no limit; those not used for longer go.
        max_bytes: None is no limit; above it, those used longest ago go. What was used within the
            last hour stays in any case: a job may be reading it.
        now: Seconds since the epoch.
    """
    now = time.time() if now is None else now
    free = [pack for pack in packs if now - pack.used_at > _SURELY_UNUSED.total_seconds()]
    surplus = sum(pack.size for pack in packs) - max_bytes if max_bytes is not None else 0
    going = []
    for pack in free:
        is_old = max_age is not None and now - pack.used_at > max_age.total_seconds()
        if is_old or surplus > 0:
            going.append(pack)
            surplus -= pack.size
    return going
