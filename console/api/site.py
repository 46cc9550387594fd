"""The API's application, mounted at ``/v1``."""

from typing import Any

from fastapi import FastAPI

from console.api import catalog, events, files, jobs, uploads
from console.api.problems import ProblemDocument, add_problem_handlers
from console.services.services import Services

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
        408: "The body arrives too slowly.",
        409: "Not possible in the current state.",
        413: "Too many bytes.",
        422: "Invalid job or request, with every problem.",
        429: "Too many requests; retry after `Retry-After` seconds.",
        503: "The broker or the store is unavailable.",
        507: "The disk is full, or the tenant's quota of uploads.",
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
    return api
