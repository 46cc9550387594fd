"""Login links: one-time tokens with which a browser logs in without pasting a key.

``training-worker up`` makes them for its own console. A token has 256 random bits; the broker has
only its digest, for minutes, with the digest of the key that it stands for.
"""

import re
import secrets
from datetime import timedelta

from redis import Redis

from tasks.access.api_keys import digest_of
from tasks.state.keys import LOGIN_LINKS_PREFIX

LOGIN_LINK_TTL = timedelta(minutes=10)
"""How long a link works: enough to find the browser, too short to be worth keeping."""
_TOKEN = re.compile(r"[A-Za-z0-9_-]{43}")


class LoginLinks:
    """Login links of a broker, which any of its consoles with the same API keys takes.

    Every method raises ``RedisError`` when the broker is unavailable.

    Args:
        client: A connection to the broker.
    """

    def __init__(self, client: Redis) -> None:
        self._redis = client

    def create(self, key: str) -> str:
        """Return the token of a link that logs in once with an API key."""
        token = secrets.token_urlsafe(32)
        self._redis.set(_redis_key(token), digest_of(key), ex=LOGIN_LINK_TTL)
        return token

    def redeem(self, token: str) -> str | None:
        """Return the digest of a token's API key; None for an unknown, used or expired token."""
        if not _TOKEN.fullmatch(token):
            return None
        key_digest = self._redis.getdel(_redis_key(token))
        return None if key_digest is None else str(key_digest)


def _redis_key(token: str) -> str:
    return f"{LOGIN_LINKS_PREFIX}{digest_of(token)}"
