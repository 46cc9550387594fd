"""Authentication: a key in the header, or the session of a browser that has logged in."""

from typing import Annotated

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from console.errors import ForbiddenError, TooManyError, UnauthorizedError
from console.login import COOKIE, is_same_origin
from console.services.services import Services
from tasks.api_keys import Caller

_SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
_BEARER = HTTPBearer(auto_error=False, description="A key of `training-worker keys create`.")


def services_of(request: Request) -> Services:
    """Return the services of the application."""
    services: Services = request.app.state.services
    return services


async def authenticate(
    request: Request,
    bearer: Annotated[HTTPAuthorizationCredentials | None, Depends(_BEARER)] = None,
) -> Caller:
    """Return the caller of a request.

    Raises:
        UnauthorizedError: The request has no valid key or session.
        ForbiddenError: A page of another site makes the request.
        TooManyError: The caller exceeds its rate limit.
    """
    services = services_of(request)
    if "authorization" in request.headers:
        caller = None if bearer is None else services.api_keys.find(bearer.credentials)
        if caller is None:
            raise UnauthorizedError("unknown API key")
        status = await services.api_limiter.take(caller.name)
        request.state.rate_limit = status
        if status.retry_after_s:
            raise TooManyError(f"more than {status.limit} requests a minute", status.retry_after_s)
        return caller
    caller = services.sessions.find(request.cookies.get(COOKIE))
    if caller is None:
        raise UnauthorizedError("send an API key: Authorization: Bearer twk_...")
    if request.method not in _SAFE_METHODS and not is_same_origin(request):
        raise ForbiddenError("pages of other sites may not change anything")
    return caller


CurrentCaller = Annotated[Caller, Depends(authenticate)]
ServicesDep = Annotated[Services, Depends(services_of)]
