"""Blocking methods as coroutines: the console's event loop never waits for Redis or a disk."""

from collections.abc import Callable, Coroutine
from functools import partial, wraps
from typing import Any, ParamSpec, TypeVar

from anyio import to_thread

P = ParamSpec("P")
T = TypeVar("T")


def in_thread(function: Callable[P, T]) -> Callable[P, Coroutine[Any, Any, T]]:
    """Decorate a blocking function so that each call runs in a worker thread."""

    @wraps(function)
    async def call(*args: P.args, **kwargs: P.kwargs) -> T:
        return await to_thread.run_sync(partial(function, *args, **kwargs))

    return call
