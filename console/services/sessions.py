"""Browsers that have shown a key: each has a random cookie, which is worth what the key is."""

import secrets
import time
from collections import OrderedDict

from tasks.api_keys import ApiKeys, Caller, digest_of

COOKIE = "training_session"
LIFE_S = 12 * 3600
_MOST = 10_000


class Sessions:
    """The sessions of this process; they end with it, and when their key is revoked.

    Args:
        accounts: Know keys.
    """

    def __init__(self, accounts: ApiKeys) -> None:
        self._accounts = accounts
        self._open: OrderedDict[str, tuple[str, float]] = OrderedDict()

    def begin(self, key: str) -> str | None:
        """A new session's cookie; None where the key is nobody's."""
        if self._accounts.find(key) is None:
            return None
        cookie = secrets.token_urlsafe(32)
        self._open[digest_of(cookie)] = (digest_of(key), time.monotonic() + LIFE_S)
        if len(self._open) > _MOST:
            self._open.popitem(last=False)
        return cookie

    def account(self, cookie: str | None) -> Caller | None:
        """Whose session this is; None where it is none, or over."""
        found = self._open.get(digest_of(cookie)) if cookie else None
        if found is None:
            return None
        digest, ends_at = found
        return self._accounts.find_by_digest(digest) if time.monotonic() < ends_at else None

    def end(self, cookie: str | None) -> None:
        """End a session."""
        if cookie:
            self._open.pop(digest_of(cookie), None)
