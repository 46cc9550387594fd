"""The caller of a request, whom the gate has let pass (``console.gate``)."""

from typing import Annotated

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from console.errors import UnauthorizedError
from console.services.services import Services
from tasks.api_keys import Caller

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
    _key: Annotated[HTTPAuthorizationCredentials | None, Depends(_BEARER)] = None,
) -> Caller:
    """Return the caller of a request; the key is a parameter for the API's description only.

    Raises:
        UnauthorizedError: The gate did not ask for a key.
    """
    caller: Caller | None = getattr(request.state, "caller", None)
    if caller is None:
        raise UnauthorizedError("unknown API key")
    return caller


CurrentCaller = Annotated[Caller, Depends(caller_of)]
ServicesDep = Annotated[Services, Depends(services_of)]
