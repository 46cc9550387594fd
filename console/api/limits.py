"""How often a key may ask, and how long a request's body may be."""

import math
import time
from collections import OrderedDict
from dataclasses import dataclass

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from console.api.problems import problem

MOST_BODY_BYTES = 2**20
"""Of every request but those that write uploads: a job with long lists is some kilobytes."""
_MOST_KNOWN = 10_000


@dataclass(frozen=True)
class RateLimitStatus:
    """What somebody may still ask for.

    Attributes:
        limit: Requests a minute.
        left: How many may be made at once.
        full_in_s: When all of them may be.
        retry_after_s: When the next one may be made; 0 now.
    """

    limit: int
    left: int
    full_in_s: int
    retry_after_s: int

    @property
    def headers(self) -> dict[str, str]:
        """The same for programs."""
        return {
            "RateLimit-Limit": str(self.limit),
            "RateLimit-Remaining": str(self.left),
            "RateLimit-Reset": str(self.full_in_s),
        }


class RateLimiter:
    """A bucket of requests for each asker, which fills up in a minute.

    Args:
        per_minute: How many it holds.
    """

    def __init__(self, per_minute: int) -> None:
        self._most = per_minute
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, who: str) -> RateLimitStatus:
        """Count a request; where ``retry_after_s`` is above 0, it may not be made."""
        now = time.monotonic()
        left, at = self._buckets.get(who, (float(self._most), now))
        left = min(self._most, left + (now - at) * self._most / 60)
        may = left >= 1
        left -= may
        self._buckets[who] = (left, now)
        self._buckets.move_to_end(who)
        if len(self._buckets) > _MOST_KNOWN:
            self._buckets.popitem(last=False)
        each_s = 60 / self._most
        return RateLimitStatus(
            limit=self._most,
            left=int(left),
            full_in_s=math.ceil((self._most - left) * each_s),
            retry_after_s=0 if may else math.ceil((1 - left) * each_s),
        )


class BodyLimit:
    """Refuses bodies that are too long, before or while they come.

    Args:
        app: What is asked else.
        free: The start of paths that look after themselves.
    """

    def __init__(self, app: ASGIApp, free: str) -> None:
        self._app, self._free = app, free

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        path = scope.get("path", "").removeprefix(scope.get("root_path", ""))
        if scope["type"] != "http" or path.startswith(self._free):
            await self._app(scope, receive, send)
            return
        told = dict(scope["headers"]).get(b"content-length", b"0")
        if not told.isdigit() or int(told) > MOST_BODY_BYTES:
            answer = problem(413, "too_large", _TOO_LONG)
            await answer(scope, receive, send)
            return
        came = 0

        async def counted() -> Message:
            nonlocal came
            message = await receive()
            came += len(message.get("body", b""))
            if came > MOST_BODY_BYTES:
                raise HTTPException(413, _TOO_LONG)
            return message

        await self._app(scope, counted, send)


_TOO_LONG = f"a request's body may have {MOST_BODY_BYTES:,} bytes"
