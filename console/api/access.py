"""The caller of a request, whom the gate has let pass (``console.gate``)."""

from typing import Annotated

from fastapi import Depends, Request, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer, SecurityScopes

from console.errors import UnauthorizedError
from console.scopes import check_scope
from console.services.services import Services
from tasks.access.api_keys import Caller, Scope

_BEARER = HTTPBearer(
    scheme_name="key",
    bearerFormat="twk_...",
    auto_error=False,
    description="A key of `training-worker keys create`: `Authorization: Bearer twk_...`.",
)


def services_of(request: Request) -> Services:
    """Return the services of the application."""
    services: Services = request.app.state.services
    return services


async def caller_of(
    request: Request,
    needed: SecurityScopes,
    _key: Annotated[HTTPAuthorizationCredentials | None, Depends(_BEARER)] = None,
) -> Caller:
    """Return the caller of a request, whose key has the scopes of the route.

    The key is a parameter for the API's description only.

    Raises:
        UnauthorizedError: The gate did not ask for a key.
        ForbiddenError: The key lacks a scope.
    """
    assert needed.scopes, "a route names the scope that it needs"
    caller: Caller | None = getattr(request.state, "caller", None)
    if caller is None:
        raise UnauthorizedError("unknown API key")
    for scope in needed.scopes:
        check_scope(caller, Scope(scope))
    return caller


# Every route takes one of these: so its scope is in the API's description too.
JobReader = Annotated[Caller, Security(caller_of, scopes=[Scope.JOBS_READ])]
JobWriter = Annotated[Caller, Security(caller_of, scopes=[Scope.JOBS_WRITE])]
Uploader = Annotated[Caller, Security(caller_of, scopes=[Scope.UPLOADS])]
FileReader = Annotated[Caller, Security(caller_of, scopes=[Scope.FILES])]
WebhookOwner = Annotated[Caller, Security(caller_of, scopes=[Scope.WEBHOOKS])]
Administrator = Annotated[Caller, Security(caller_of, scopes=[Scope.ADMIN])]
ServicesDep = Annotated[Services, Depends(services_of)]
