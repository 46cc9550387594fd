"""The fleet's index of cache packs in Redis: the pack of each entry, and claims on missing entries.

The packs in the store are the truth: the index is rebuilt from their headers if Redis loses it. A
claim belongs to a start of a job's stage, and expires unless it is renewed.
"""

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from importlib.resources import files
from itertools import islice
from typing import Any, cast

from redis import Redis

from tasks.cache.packs import DamagedPackError, read_header
from tasks.clock import broker_time
from tasks.events import EncoderDigests
from tasks.redis_script import Key, ScriptFolder
from tasks.store import PACKS, Store

# Entry digest to pack key; pack key to size in bytes; pack key to the time of its last use.
_ENTRIES = "training:cache:entries"
_SIZES = "training:cache:packs"
_USED = "training:cache:used"
_ENCODERS = "training:cache:encoders"
_REBUILDING = "training:cache:rebuilding"
# Bounds the time for which one command blocks the server.
_SLICE = 1000


def owner_of(job_id: str, attempt: int) -> str:
    """Return the owner of the claims of a start of a job's stage."""
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
    """A pack in the index.

    Attributes:
        key: Its store key.
        size: Its size in bytes.
        used_at: When a job used it last, in seconds since the epoch.
    """

    key: str
    size: int
    used_at: float


class PackIndex:
    """Locates, claims and records cache entries.

    Args:
        client: A connection to Redis 6.2 or newer that decodes responses.
        ttl: How long the index is kept after its last use.
        claim_ttl: How long a claim lasts without renewal.
    """

    def __init__(self, client: Redis, ttl: timedelta, claim_ttl: timedelta) -> None:
        self._redis = client
        self._ttl = ttl
        self._claim_ms = int(claim_ttl.total_seconds() * 1000)

    @property
    def renew_every_s(self) -> float:
        """The interval at which an owner should renew its claims, in seconds."""
        return self._claim_ms / 4000

    def locate(self, digests: Iterable[str]) -> dict[str, str]:
        """Return the pack of each entry that is cached."""
        packs: dict[str, str] = {}
        names: dict[str, str] = {}  # each pack's key once in memory
        for part in _slices(digests):
            keys = cast("list[str | None]", self._redis.hmget(_ENTRIES, part))
            found = zip(part, keys, strict=True)
            packs |= {digest: names.setdefault(key, key) for digest, key in found if key}
        return packs

    def claim(self, digests: Iterable[str], owner: str, limit: int) -> list[str]:
        """Claim entries that are neither cached nor claimed by another job.

        Args:
            digests: The entries, in order of preference.
            owner: The owner that ``owner_of`` returns.
            limit: The most entries to claim.

        Returns:
            The claimed entries.
        """
        claimed: list[str] = []
        for part in _slices(digests):
            left = limit - len(claimed)
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
        """Restart the life time of claims."""
        for part in _slices(digests):
            hold_claims(self._redis, owner=owner, ttl_ms=self._claim_ms, digests=part)

    def release(self, digests: Iterable[str], owner: str) -> None:
        """Release claims."""
        for part in _slices(digests):
            hold_claims(self._redis, owner=owner, ttl_ms=0, digests=part)

    def add(self, key: str, size: int, digests: Sequence[str]) -> None:
        """Record a pack that is stored."""
        now = self.now()
        with self._redis.pipeline() as pipe:
            pipe.hset(_ENTRIES, mapping=dict.fromkeys(digests, key))
            pipe.hset(_SIZES, key, str(size))
            pipe.zadd(_USED, {key: now})
            self._renew_ttl(pipe)
            pipe.execute()

    def touch(self, keys: Iterable[str]) -> None:
        """Record that packs are in use: eviction removes the least recently used ones first."""
        now = self.now()
        for part in _slices(set(keys)):
            with self._redis.pipeline() as pipe:
                pipe.zadd(_USED, dict.fromkeys(part, now), xx=True)
                self._renew_ttl(pipe)
                pipe.execute()

    def encoders(self, identity: str) -> EncoderDigests | None:
        """Return the digests of encoders; None if they are not recorded."""
        document = cast("str | None", self._redis.hget(_ENCODERS, identity))
        return None if document is None else EncoderDigests.model_validate_json(document)

    def record_encoders(self, identity: str, digests: EncoderDigests) -> None:
        """Record the digests of encoders, whose weights take long to read."""
        self._redis.hset(_ENCODERS, identity, digests.model_dump_json())
        self._redis.expire(_ENCODERS, self._ttl)

    def now(self) -> float:
        """Return the time by the clock that ``used_at`` is of."""
        return broker_time(self._redis)

    def packs(self) -> list[Pack]:
        """Return every pack, the least recently used first."""
        sizes = cast("dict[str, str]", self._redis.hgetall(_SIZES))
        used = cast("list[tuple[str, float]]", self._redis.zrange(_USED, 0, -1, withscores=True))
        return [Pack(key, int(sizes.get(key, 0)), at) for key, at in used]

    def remove(self, keys: Collection[str]) -> None:
        """Remove packs and their entries from the index."""
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
        """Record the packs of the store that the index misses; remove unreadable ones.

        Returns:
            The number of recorded packs.
        """
        known = {pack.key for pack in self.packs()}
        recorded = 0
        for key, size in store.sizes(PACKS).items():
            if key in known:
                continue
            try:
                self.add(key, size, list(read_header(store, key)))
                recorded += 1
            except DamagedPackError:
                store.delete([key])
        return recorded

    def rebuild_if_lost(self, store: Store) -> None:
        """Rebuild the index if Redis has lost it; one worker of the fleet does so at a time."""
        if self._redis.exists(_USED):
            return
        lock = self._redis.lock(_REBUILDING, timeout=600, blocking_timeout=600)
        with lock:
            if not self._redis.exists(_USED):
                self.rebuild(store)

    def _renew_ttl(self, pipe: Any) -> None:
        for name in (_ENTRIES, _SIZES, _USED):
            pipe.expire(name, self._ttl)


def _slices(items: Iterable[str]) -> Iterator[list[str]]:
    rest = iter(items)
    while part := list(islice(rest, _SLICE)):
        yield part
