"""Blocking methods as coroutines: the console's event loop never waits for Redis or a disk."""

from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack
from contextvars import ContextVar
from functools import partial, wraps
from typing import Any, ParamSpec, TypeVar

from anyio import CapacityLimiter, to_thread
from anyio.lowlevel import RunVar

P = ParamSpec("P")
T = TypeVar("T")

current_account: ContextVar[str | None] = ContextVar("current_account", default=None)
"""The account that a request or page is for; None for the console's own work."""

# Of anyio's 40. Further calls of an account wait, while those of others run.
_THREADS_OF_ACCOUNT = 8
_limiters: RunVar[dict[str, CapacityLimiter]] = RunVar("limiters")


def in_thread(function: Callable[P, T]) -> Callable[P, Coroutine[Any, Any, T]]:
    """Decorate a blocking function so that each call runs in a worker thread."""

    @wraps(function)
    async def call(*args: P.args, **kwargs: P.kwargs) -> T:
        async with AsyncExitStack() as held:
            account = current_account.get()
            if account is not None:
                await held.enter_async_context(_limiter_of(account))
            return await to_thread.run_sync(partial(function, *args, **kwargs))

    return call


def _limiter_of(account: str) -> CapacityLimiter:
    limiters = _limiters.get({})
    _limiters.set(limiters)
    return limiters.setdefault(account, CapacityLimiter(_THREADS_OF_ACCOUNT))
