"""Errors as problem documents of RFC 9457 (``application/problem+json``), with every problem."""

import http
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import redis
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from kombu.exceptions import OperationalError
from pydantic import BaseModel, ConfigDict
from starlette.exceptions import HTTPException

from console.errors import (
    ConflictError,
    ConsoleError,
    NotFoundError,
    TooLargeError,
    TooSlowError,
)
from tasks.errors import ErrorCode, JobError, MissingObjectError, Problem, ProblemCode
from tasks.jobs.problems import problem_code

logger = logging.getLogger(__name__)

PROBLEM_TYPE = "application/problem+json"

_STATUS = {
    ErrorCode.INVALID_JOB: 422,
    ErrorCode.INVALID_DATASET: 422,
    ErrorCode.INVALID_MODEL: 422,
    ErrorCode.INVALID_DESTINATION: 422,
    ErrorCode.DOES_NOT_FIT: 422,
    ErrorCode.UNKNOWN_JOB: 404,
    ErrorCode.INVALID_STATE: 409,
    ErrorCode.QUOTA_EXCEEDED: 429,
    ErrorCode.NO_BROKER: 503,
    ErrorCode.NO_WORKER: 503,
    ErrorCode.STORE: 503,
}
_RETRY_AFTER_S = 5
_HTTP_CODES = {
    404: NotFoundError.code,
    405: "method_not_allowed",
    408: TooSlowError.code,
    413: TooLargeError.code,
}
# What to do where a problem does not say it: by the code of the error, then of the problem.
_REMEDIES = {
    ErrorCode.UNKNOWN_JOB: NotFoundError.remedy,
    ErrorCode.INVALID_STATE: ConflictError.remedy,
    ErrorCode.NO_BROKER: "send it again later; the operator runs training-worker doctor",
    ErrorCode.NO_WORKER: "send it again when a worker serves the queue",
    ErrorCode.QUOTA_EXCEEDED: "send it again after Retry-After seconds, or ask the operator",
    ErrorCode.STORE: "send it again later; the operator runs training-worker doctor",
    ErrorCode.INTERNAL: "report it to the operator: the console's log has the details",
    NotFoundError.code: "use a path that /v1/docs describes",
    "method_not_allowed": "use a method that Allow names",
    TooSlowError.code: TooSlowError.remedy,
    TooLargeError.code: TooLargeError.remedy,
    "bad_request": "correct it as /v1/docs describes it",
}
_REMEDIES_OF_PROBLEMS: dict[ProblemCode, str] = {
    "invalid": "correct it",
    "missing": "add it",
    "unknown_option": "remove it, or correct its name",
    "unknown_choice": "choose one of these",
    "wrong_type": "write a value of this type",
    "out_of_range": "choose a value within the bounds",
}


class ProblemView(BaseModel):
    """A problem of a request."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    code: str
    """The kind of problem, for programs: `missing`, `unknown_option`, `unknown_choice`,
    `wrong_type`, `out_of_range`, or `invalid`."""
    location: str
    """The field (`training.lora_rank_dim`), header, parameter or file; empty for the request as a
    whole."""
    message: str
    """What is wrong, and what would be right."""
    remedy: str
    """What to do."""
    retryable: bool
    """Whether the same input may be accepted later."""


class ProblemDocument(BaseModel):
    """Why a request failed (RFC 9457)."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    type: str
    """The code as a URN."""
    title: str
    """The name of the status."""
    status: int
    """The status of the response."""
    detail: str
    """One sentence, or a list of problems, one per line."""
    code: str
    """Why the request failed, for programs: `invalid_job`, `not_found`, `too_many_requests`, ..."""
    retryable: bool
    """Whether the same request may succeed later; if so, after `Retry-After`."""
    errors: list[ProblemView]
    """Every problem."""


def problem(
    status: int,
    code: str,
    detail: str,
    problems: Sequence[Problem] = (),
    headers: Mapping[str, str] | None = None,
    *,
    retryable: bool = False,
) -> Response:
    """Return the response for an error; without problems, its detail is the one problem."""
    document = ProblemDocument(
        type=f"urn:training-worker:{code}",
        title=http.HTTPStatus(status).phrase if status in _PHRASES else "Checksum Mismatch",
        status=status,
        detail=detail,
        code=code,
        retryable=retryable,
        errors=[
            ProblemView(
                code=it.code,
                location=it.location,
                message=it.message,
                remedy=it.remedy or _REMEDIES.get(code) or _REMEDIES_OF_PROBLEMS[it.code],
                retryable=it.retryable,
            )
            for it in problems or [Problem("", detail, retryable=retryable)]
        ],
    )
    return Response(document.model_dump_json(), status, media_type=PROBLEM_TYPE, headers=headers)


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
    return problem(
        error.status,
        error.code,
        error.message,
        error.problems,
        error.headers,
        retryable=error.retryable,
    )


async def _job_error(_request: Request, error: Exception) -> Response:
    assert isinstance(error, JobError)
    if isinstance(error, MissingObjectError):
        return problem_of(NotFoundError("the file is no longer in the store"))
    status = _STATUS.get(error.code, 500)
    if status >= 500:
        logger.error("%s", error, exc_info=error)
    if status == 500:
        return _unexpected()
    problems: Sequence[Problem] = getattr(error, "problems", ())
    retryable = error.retryable or status == 503
    retry_after_s = getattr(error, "retry_after_s", _RETRY_AFTER_S)
    headers = {"Retry-After": str(retry_after_s)} if retryable else None
    return problem(status, error.code, error.message, problems, headers, retryable=retryable)


async def _invalid_request(_request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    problems = [_problem(details) for details in error.errors()]
    return problem(422, "invalid_request", "invalid request", problems)


def _problem(details: Mapping[str, Any]) -> Problem:
    location = ".".join(str(part) for part in details["loc"])
    message = str(details["msg"]).removeprefix("Value error, ")
    return Problem(location, message, code=problem_code(details["type"]))


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    status, message = error.status_code, str(error.detail)
    if status == 404:
        message = "the API has no such path"
    elif status == 405:
        message = f"this path has no method {request.method}"
    code = _HTTP_CODES.get(status, "bad_request")
    retryable = status == TooSlowError.status
    return problem(status, code, message, headers=error.headers, retryable=retryable)


async def _no_broker(_request: Request, error: Exception) -> Response:
    logger.error("the broker is unavailable: %s", error)
    headers = {"Retry-After": str(_RETRY_AFTER_S)}
    message = "the broker is unavailable"
    return problem(503, ErrorCode.NO_BROKER, message, headers=headers, retryable=True)


async def _internal(_request: Request, error: Exception) -> Response:
    # The server gets the error too, and logs it.
    return _unexpected()


def _unexpected() -> Response:
    return problem(500, ErrorCode.INTERNAL, "internal error; see the console's log")
