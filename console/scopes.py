"""Scopes: one check of what a key may do, for the routes of the API and for pages."""

from console.errors import ForbiddenError
from tasks.access.api_keys import Caller, Scope


def check_scope(caller: Caller, scope: Scope) -> Caller:
    """Return the caller if its key has a scope.

    Raises:
        ForbiddenError: The key lacks it.
    """
    if not caller.allows(scope):
        raise ForbiddenError(f"key {caller.name} lacks the scope {scope}")
    return caller
