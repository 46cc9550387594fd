"""Who asks: a key in the header, or the session of a browser that has shown one."""

from typing import Annotated
from urllib.parse import urlsplit

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from console.api.limits import RateLimiter
from console.errors import ForbiddenError, TooManyError, UnauthorizedError
from console.services.service import Service
from console.services.sessions import COOKIE
from tasks.api_keys import Caller

_SAFE = ("GET", "HEAD", "OPTIONS")
_BEARER = HTTPBearer(auto_error=False, description="A key of `training-worker keys create`.")


def service_of(request: Request) -> Service:
    """The service behind the application."""
    service: Service = request.app.state.service
    return service


async def asking_account(
    request: Request,
    bearer: Annotated[HTTPAuthorizationCredentials | None, Depends(_BEARER)] = None,
) -> Caller:
    """Who asks.

    Raises:
        UnauthorizedError: Nobody that is known.
        ForbiddenError: Another site's page asks in a browser's name.
        TooManyError: Too often.
    """
    service = service_of(request)
    if "authorization" in request.headers:
        account = None if bearer is None else service.accounts.find(bearer.credentials)
        if account is None:
            raise UnauthorizedError("the API key is not known")
        limiter: RateLimiter = request.app.state.limiter
        allowance = limiter.take(account.name)
        request.state.allowance = allowance
        if allowance.retry_after_s:
            problem = f"more than {allowance.limit} requests a minute"
            raise TooManyError(problem, allowance.retry_after_s)
        return account
    account = service.sessions.account(request.cookies.get(COOKIE))
    if account is None:
        raise UnauthorizedError("send an API key: Authorization: Bearer twk_...")
    if request.method not in _SAFE and not is_same_origin(request):
        raise ForbiddenError("another site's page may not do this")
    return account


def is_same_origin(request: Request) -> bool:
    """Whether a browser says that a request comes from a page of ours."""
    site = request.headers.get("sec-fetch-site")
    if site is not None:
        return site == "same-origin"
    origin = urlsplit(request.headers.get("origin", ""))
    return bool(origin.netloc) and origin.netloc == request.headers.get("host")


Asking = Annotated[Caller, Depends(asking_account)]
Served = Annotated[Service, Depends(service_of)]
