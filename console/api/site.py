"""The API's application, mounted at ``/v1``."""

from typing import Any

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from console.api import catalog, events, files, jobs, uploads
from console.api.problems import ProblemDocument, add_problem_handlers, problem
from console.services.services import Services

MAX_BODY_BYTES = 2**20
"""Maximum body of a request, other than of uploads: a job with long lists has some kilobytes."""
_TOO_LARGE = f"the body of a request has at most {MAX_BODY_BYTES:,} bytes"

_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {
        "description": description,
        "content": {"application/problem+json": {}},
        "model": ProblemDocument,
    }
    for status, description in {
        400: "Malformed request.",
        401: "No valid key.",
        403: "Insufficient permission, or a cross-origin request.",
        404: "Not found, or not visible to this key.",
        409: "Not possible in the current state.",
        413: "Too many bytes.",
        422: "Invalid job or request, with every problem.",
        429: "Too many requests; retry after `Retry-After` seconds.",
        503: "The broker or the store is unavailable.",
    }.items()
}


def make_api(services: Services) -> FastAPI:
    """Return the API's application."""
    api = FastAPI(
        title="training-worker",
        version="1",
        summary="Fine-tune image models on a fleet of GPUs.",
        docs_url=None,
        redoc_url=None,
        responses=_ERRORS,
    )
    api.state.services = services
    add_problem_handlers(api)
    for module in (jobs, events, files, uploads, catalog):
        api.include_router(module.router)
    api.add_middleware(BodyLimit, exempt="/uploads/")
    return api


class BodyLimit:
    """Middleware that refuses bodies that are too large, before or while they arrive.

    Args:
        app: The application.
        exempt: Prefix of the paths that have separate limits.
    """

    def __init__(self, app: ASGIApp, exempt: str) -> None:
        self._app, self._exempt = app, exempt

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request."""
        path = scope.get("path", "").removeprefix(scope.get("root_path", ""))
        if scope["type"] != "http" or path.startswith(self._exempt):
            await self._app(scope, receive, send)
            return
        length = dict(scope["headers"]).get(b"content-length", b"0")
        if not length.isdigit() or int(length) > MAX_BODY_BYTES:
            refused = problem(413, "content_too_large", _TOO_LARGE)
            await refused(scope, receive, send)
            return
        received = 0

        async def receive_counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > MAX_BODY_BYTES:
                raise HTTPException(413, _TOO_LARGE)
            return message

        await self._app(scope, receive_counted, send)
