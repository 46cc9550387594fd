"""Values that all consoles of a broker share: of each account the most recently used ones."""

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from typing import Any, cast

from redis import Redis, RedisError

from console.errors import UnavailableError
from tasks.redis_script import Key, ScriptFolder

logger = logging.getLogger(__name__)

_lua = ScriptFolder(files("console.services") / "lua", {})


@_lua.script
def keep_value(
    *,
    value_key: Key,
    index_key: Key,
    value_prefix: str,
    value_id: str,
    value: str,
    max_each: int,
    ttl_s: int,
) -> list[str]:
    """Store a value; return the ids of those that make room for it."""
    raise NotImplementedError


@_lua.script
def use_value(*, value_key: Key, index_prefix: str, value_id: str) -> str | None:
    """Read a value, and note its use."""
    raise NotImplementedError


@contextmanager
def available() -> Iterator[None]:
    """Report an unavailable broker.

    Raises:
        UnavailableError: The block raised a ``RedisError``.
    """
    try:
        yield
    except RedisError as error:
        logger.error("the broker is unavailable: %s", error)
        raise UnavailableError from error


class SharedValues:
    """Documents by id in the broker. Ids are random or digests, and known to their owners only.

    Every method raises ``RedisError`` when the broker is unavailable; see ``available``.

    Args:
        client: A connection to the broker.
        prefix: Before an id: the key of its value. With ``ids:`` and an account: its index.
        max_each: Maximum of an account; more end the least recently used ones.
        ttl_s: How long a value is kept after it was stored.
    """

    def __init__(self, client: Redis, prefix: str, max_each: int, ttl_s: int) -> None:
        self._redis, self._prefix = client, prefix
        self._max_each, self._ttl_s = max_each, ttl_s

    def put(self, account: str, value_id: str, value: dict[str, Any]) -> list[str]:
        """Store a value of an account, or replace it; return the ids that make room for it."""
        return keep_value(
            self._redis,
            value_key=f"{self._prefix}{value_id}",
            index_key=self._index(account),
            value_prefix=self._prefix,
            value_id=value_id,
            value=json.dumps({**value, "account": account}),
            max_each=self._max_each,
            ttl_s=self._ttl_s,
        )

    def get(self, value_id: str) -> dict[str, Any] | None:
        """Return a value, which is the most recently used one then; None for an unknown id."""
        text = use_value(
            self._redis,
            value_key=f"{self._prefix}{value_id}",
            index_prefix=self._index(""),
            value_id=value_id,
        )
        return None if text is None else cast("dict[str, Any]", json.loads(text))

    def all(self, account: str) -> dict[str, dict[str, Any]]:
        """Return an account's values by id, the least recently used one first."""
        ids = self.ids(account)
        texts = self._redis.mget([f"{self._prefix}{it}" for it in ids]) if ids else []
        found = zip(ids, cast("list[str | None]", texts), strict=True)
        return {value_id: json.loads(text) for value_id, text in found if text is not None}

    def existing(self, value_ids: list[str]) -> set[str]:
        """Return which of these ids are known."""
        with self._redis.pipeline(transaction=False) as pipe:
            for value_id in value_ids:
                pipe.exists(f"{self._prefix}{value_id}")
            known = pipe.execute()
        return {value_id for value_id, is_known in zip(value_ids, known, strict=True) if is_known}

    def remove(self, value_id: str) -> None:
        """Remove a value."""
        value = self.get(value_id)
        if value is not None:
            self._redis.delete(f"{self._prefix}{value_id}")
            self._redis.zrem(self._index(value["account"]), value_id)

    def ids(self, account: str) -> list[str]:
        """Return the ids of an account's values, the least recently used one first."""
        return cast("list[str]", self._redis.zrange(self._index(account), 0, -1))

    def _index(self, account: str) -> str:
        return f"{self._prefix}ids:{account}"
