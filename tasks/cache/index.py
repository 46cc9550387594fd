"""The fleet's cache in Redis: where each entry is, and who encodes which one now.

The packs in the store are the truth; what is kept here can be made anew from their headers, and
is, where Redis has lost it. A claim is held by a job and ends by itself unless it is renewed.
"""

import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from importlib.resources import files
from itertools import islice
from typing import Any, cast

from redis import Redis

from tasks.cache.packs import DamagedPackError, read_header
from tasks.events import EncoderDigests
from tasks.redis_script import Key, ScriptFolder
from tasks.store import PACKS, Store

# Entry digest to pack key; pack key to size in bytes; pack key to the time of its last use.
_ENTRIES = "training:cache:entries"
_SIZES = "training:cache:packs"
_USED = "training:cache:used"
_ENCODERS = "training:cache:encoders"
_REBUILDING = "training:cache:rebuilding"
# Bounds what one command holds up the server for.
_SLICE = 1000


def owner_of(job_id: str, attempt: int) -> str:
    """What a start of a job's stage claims entries as."""
    return f"{job_id} {attempt}"


_lua = ScriptFolder(
    files("tasks.cache") / "lua", {"keys": {"claim_prefix": "training:cache:claim:"}}
)


@_lua.script
def claim_entries(
    *, entries: Key, owner: str, ttl_ms: int, limit: int, digests: Sequence[str]
) -> list[str]:
    """Claim entries that are missing and not claimed."""
    raise NotImplementedError


@_lua.script
def hold_claims(*, owner: str, ttl_ms: int, digests: Sequence[str]) -> None:
    """Renew claims, or release them."""
    raise NotImplementedError


@_lua.script
def drop_entries(*, entries: Key, pack: str, digests: Sequence[str]) -> None:
    """Remove the entries of a pack."""
    raise NotImplementedError


@dataclass(frozen=True)
class Pack:
    """A pack that is known.

    Attributes:
        size: In bytes.
        used_at: When a job used it last, in seconds since the epoch.
    """

    key: str
    size: int
    used_at: float


class CacheRegistry:
    """Finds, claims and records cache entries.

    Args:
        client: A connection to Redis 6.2 or newer that decodes responses.
        ttl: How long all of it is kept after its last use.
        claim_ttl: How long a claim lasts without renewal.
    """

    def __init__(self, client: Redis, ttl: timedelta, claim_ttl: timedelta) -> None:
        self._redis = client
        self._ttl = ttl
        self._claim_ms = int(claim_ttl.total_seconds() * 1000)

    @property
    def renew_every_s(self) -> float:
        """How often a holder should renew its claims."""
        return self._claim_ms / 4000

    def locate(self, digests: Iterable[str]) -> dict[str, str]:
        """The pack's store key of each entry that there is."""
        found: dict[str, str] = {}
        for part in _slices(digests):
            keys = cast("list[str | None]", self._redis.hmget(_ENTRIES, part))
            found |= {digest: key for digest, key in zip(part, keys, strict=True) if key}
        return found

    def claim(self, digests: Iterable[str], owner: str, most: int) -> list[str]:
        """Claim up to so many entries that nobody has and nobody else makes.

        Args:
            digests: Wanted, in the order of preference.
            owner: The job's id and the number of its start, as ``owner_of`` makes it.
            most: How many at the most.
        """
        claimed: list[str] = []
        for part in _slices(digests):
            left = most - len(claimed)
            if not left:
                break
            claimed += claim_entries(
                self._redis,
                entries=_ENTRIES,
                owner=owner,
                ttl_ms=self._claim_ms,
                limit=left,
                digests=part,
            )
        return claimed

    def renew(self, digests: Iterable[str], owner: str) -> None:
        """Hold claims for their whole life again."""
        for part in _slices(digests):
            hold_claims(self._redis, owner=owner, ttl_ms=self._claim_ms, digests=part)

    def release(self, digests: Iterable[str], owner: str) -> None:
        """Give claims back."""
        for part in _slices(digests):
            hold_claims(self._redis, owner=owner, ttl_ms=0, digests=part)

    def add(self, key: str, size: int, digests: Sequence[str]) -> None:
        """Record a pack that is in the store, whole."""
        with self._redis.pipeline() as pipe:
            pipe.hset(_ENTRIES, mapping=dict.fromkeys(digests, key))
            pipe.hset(_SIZES, key, str(size))
            pipe.zadd(_USED, {key: time.time()})
            self._keep(pipe)
            pipe.execute()

    def use(self, keys: Iterable[str]) -> None:
        """Note that packs are in use: those used last are the last to be removed."""
        for part in _slices(set(keys)):
            with self._redis.pipeline() as pipe:
                pipe.zadd(_USED, dict.fromkeys(part, time.time()), xx=True)
                self._keep(pipe)
                pipe.execute()

    def encoders(self, identity: str) -> EncoderDigests | None:
        """The digests of encoders, where they were recorded under this identity."""
        found = cast("str | None", self._redis.hget(_ENCODERS, identity))
        return None if found is None else EncoderDigests.model_validate_json(found)

    def record_encoders(self, identity: str, digests: EncoderDigests) -> None:
        """Record the digests of encoders: reading their weights takes long."""
        self._redis.hset(_ENCODERS, identity, digests.model_dump_json())
        self._redis.expire(_ENCODERS, self._ttl)

    def packs(self) -> list[Pack]:
        """Every pack, that used longest ago first."""
        sizes = cast("dict[str, str]", self._redis.hgetall(_SIZES))
        used = cast("list[tuple[str, float]]", self._redis.zrange(_USED, 0, -1, withscores=True))
        return [Pack(key, int(sizes.get(key, 0)), at) for key, at in used]

    def forget(self, keys: Collection[str]) -> None:
        """Forget packs and their entries."""
        entries: dict[str, list[str]] = {key: [] for key in keys}
        for digest, key in self._redis.hscan_iter(_ENTRIES, count=_SLICE):
            if key in entries:
                entries[key].append(digest)
        for key, digests in entries.items():
            for part in _slices(digests):
                drop_entries(self._redis, entries=_ENTRIES, pack=key, digests=part)
            self._redis.hdel(_SIZES, key)
            self._redis.zrem(_USED, key)

    def rebuild(self, store: Store) -> int:
        """Record the packs of the store that are not known; those that cannot be read are removed.

        Returns:
            How many packs it learned of.
        """
        known = {pack.key for pack in self.packs()}
        learned = 0
        for key, size in store.sizes(PACKS).items():
            if key in known:
                continue
            try:
                self.add(key, size, list(read_header(store, key)))
                learned += 1
            except DamagedPackError:
                store.delete([key])
        return learned

    def rebuild_if_lost(self, store: Store) -> None:
        """Make it anew where Redis has nothing, once in the fleet."""
        if self._redis.exists(_USED):
            return
        lock = self._redis.lock(_REBUILDING, timeout=600, blocking_timeout=600)
        with lock:
            if not self._redis.exists(_USED):
                self.rebuild(store)

    def _keep(self, pipe: Any) -> None:
        for name in (_ENTRIES, _SIZES, _USED):
            pipe.expire(name, self._ttl)


def _slices(items: Iterable[str]) -> Iterator[list[str]]:
    rest = iter(items)
    while part := list(islice(rest, _SLICE)):
        yield part
