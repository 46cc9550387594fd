"""The API, put together; mounted as ``/v1``."""

from typing import Any

from fastapi import FastAPI

from console.api import catalog, events, files, jobs, uploads
from console.api.limits import BodyLimit, RateLimiter
from console.api.problems import ProblemDocument, add_problem_handlers
from console.services.service import Service

_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {
        "description": told,
        "content": {"application/problem+json": {}},
        "model": ProblemDocument,
    }
    for status, told in {
        400: "The request says nothing that could be done.",
        401: "No key, or one that is nobody's.",
        403: "The key does not go so far.",
        404: "There is no such thing, for this key.",
        409: "The thing is not where this can be done to it.",
        413: "More bytes than are taken.",
        422: "What is wrong with the job or the request, all of it.",
        429: "Too often; `Retry-After` says when again.",
        503: "The broker or the store does not answer.",
    }.items()
}


def make_api(service: Service) -> FastAPI:
    """The API's application.

    Args:
        service: What it does.
    """
    api = FastAPI(
        title="training-worker",
        version="1",
        summary="Fine-tune image models on a fleet of GPUs.",
        docs_url=None,
        redoc_url=None,
        responses=_ERRORS,
    )
    api.state.service = service
    api.state.limiter = RateLimiter(service.settings.api_rate_limit)
    add_problem_handlers(api)
    for module in (jobs, events, files, uploads, catalog):
        api.include_router(module.router)
    api.add_middleware(BodyLimit, free="/uploads/")
    return api
