"""Errors as problem documents of RFC 9457 (``application/problem+json``), with every problem."""

import http
import json
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import redis
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from kombu.exceptions import OperationalError
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from console.errors import ConsoleError, TooManyError, UnauthorizedError
from tasks.errors import ErrorCode, JobError, MissingObjectError, Problem

logger = logging.getLogger(__name__)

_STATUS = {
    ErrorCode.INVALID_JOB: 422,
    ErrorCode.INVALID_DATASET: 422,
    ErrorCode.INVALID_MODEL: 422,
    ErrorCode.DOES_NOT_FIT: 422,
    ErrorCode.UNKNOWN_JOB: 404,
    ErrorCode.INVALID_STATE: 409,
    ErrorCode.NO_BROKER: 503,
    ErrorCode.NO_WORKER: 503,
    ErrorCode.STORE: 503,
}


class ProblemView(BaseModel):
    """A problem of a request: where, what, and what to do."""

    location: str
    message: str
    remedy: str


class ProblemDocument(BaseModel):
    """Why a request failed."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    errors: list[ProblemView]


def problem(
    status: int,
    code: str,
    detail: str,
    problems: Sequence[Problem] = (),
    headers: Mapping[str, str] | None = None,
) -> Response:
    """Return the response for an error."""
    document = {
        "type": f"urn:training-worker:{code}",
        "title": http.HTTPStatus(status).phrase if status in _PHRASES else "Checksum Mismatch",
        "status": status,
        "detail": detail,
        "code": code,
        "errors": [
            {"location": problem.location, "message": problem.message, "remedy": problem.remedy}
            for problem in problems
        ],
    }
    media_type = "application/problem+json"
    return Response(json.dumps(document), status, media_type=media_type, headers=headers)


_PHRASES = frozenset(status.value for status in http.HTTPStatus)


def add_problem_handlers(app: FastAPI) -> None:
    """Add handlers to an application, so that it answers every error with a problem document."""
    app.add_exception_handler(ConsoleError, _console_error)
    app.add_exception_handler(JobError, _job_error)
    app.add_exception_handler(RequestValidationError, _invalid_request)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(redis.ConnectionError, _no_broker)
    app.add_exception_handler(redis.TimeoutError, _no_broker)
    app.add_exception_handler(OperationalError, _no_broker)
    app.add_exception_handler(Exception, _internal)


async def _console_error(_request: Request, error: Exception) -> Response:
    assert isinstance(error, ConsoleError)
    return problem_of(error)


def problem_of(error: ConsoleError) -> Response:
    """Return the response for an error of the console."""
    headers = {}
    if isinstance(error, TooManyError):
        headers["Retry-After"] = str(error.retry_after_s)
    if isinstance(error, UnauthorizedError):
        headers["WWW-Authenticate"] = "Bearer"
    return problem(error.status, error.code, error.message, error.problems, headers)


async def _job_error(_request: Request, error: Exception) -> Response:
    assert isinstance(error, JobError)
    if isinstance(error, MissingObjectError):
        return problem(404, "not_found", "the file is no longer in the store")
    status = _STATUS.get(error.code, 500)
    if status >= 500:
        logger.error("%s", error, exc_info=error)
    if status == 500:
        return _unexpected()
    problems: Sequence[Problem] = getattr(error, "problems", ())
    headers = {"Retry-After": "5"} if status == 503 else None
    return problem(status, error.code, error.message, problems, headers)


async def _invalid_request(_request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    problems = [_problem(details) for details in error.errors()]
    return problem(422, "invalid_request", "invalid request", problems)


def _problem(details: Mapping[str, Any]) -> Problem:
    return Problem(".".join(str(part) for part in details["loc"]), str(details["msg"]))


async def _http_error(_request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    code = {404: "not_found", 405: "method_not_allowed", 413: "content_too_large"}.get(
        error.status_code, "bad_request"
    )
    return problem(error.status_code, code, str(error.detail), headers=error.headers)


async def _no_broker(_request: Request, error: Exception) -> Response:
    logger.error("the broker is unavailable: %s", error)
    return problem(
        503, ErrorCode.NO_BROKER, "the broker is unavailable", headers={"Retry-After": "5"}
    )


async def _internal(_request: Request, error: Exception) -> Response:
    # The server gets the error too, and logs it.
    return _unexpected()


def _unexpected() -> Response:
    return problem(500, ErrorCode.INTERNAL, "internal error; see the console's log")
