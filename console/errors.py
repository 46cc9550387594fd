"""Errors of the console, beside those of jobs (``tasks/errors.py``).

ConsoleError
├── BadRequestError           400, malformed request
├── UnauthorizedError         401, no valid key
├── ForbiddenError            403, insufficient permission
├── NotFoundError             404, absent, or not visible to the caller
├── TooSlowError              408, the sender was idle for too long
├── ConflictError             409, not possible in the current state
├── TooLargeError             413, too many bytes
├── TooManyError              429, too often, or too many at a time
├── ChecksumError             460, the bytes differ from their checksum
└── InsufficientStorageError  507, the disk is full
"""

from collections.abc import Sequence

from tasks.errors import Problem


class ConsoleError(Exception):
    """A request failed.

    Args:
        message: One clear sentence.
        problems: Every problem, when there are several.
    """

    status = 500
    code = "internal"

    def __init__(self, message: str, problems: Sequence[Problem] = ()) -> None:
        super().__init__(message)
        self.message = message
        self.problems = tuple(problems)


class BadRequestError(ConsoleError):
    """The request is malformed."""

    status = 400
    code = "bad_request"


class UnauthorizedError(ConsoleError):
    """The request has no valid key."""

    status = 401
    code = "unauthorized"


class ForbiddenError(ConsoleError):
    """The key has insufficient permission."""

    status = 403
    code = "forbidden"


class NotFoundError(ConsoleError):
    """The thing is absent, or the caller may not see it."""

    status = 404
    code = "not_found"


class TooSlowError(ConsoleError):
    """The sender was idle for too long."""

    status = 408
    code = "request_timeout"


class ConflictError(ConsoleError):
    """The request is not possible in the current state."""

    status = 409
    code = "conflict"


class TooLargeError(ConsoleError):
    """The request has too many bytes."""

    status = 413
    code = "content_too_large"


class TooManyError(ConsoleError):
    """The caller makes too many requests, or too many at a time.

    Args:
        message: One clear sentence.
        retry_after_s: When the caller may retry.
    """

    status = 429
    code = "too_many_requests"

    def __init__(self, message: str, retry_after_s: int = 1) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class ChecksumError(ConsoleError):
    """The bytes differ from their checksum; tus defines this status."""

    status = 460
    code = "checksum_mismatch"


class InsufficientStorageError(ConsoleError):
    """The disk is full."""

    status = 507
    code = "insufficient_storage"
