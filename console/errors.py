"""Errors of the console's own, beside those of jobs.

ConsoleError
├── UnauthorizedError    no key, or one that is nobody's
├── ForbiddenError       the key does not go so far
├── NotFoundError        there is no such thing, for this account
├── ConflictError        the thing is not where this can be done to it
├── BadRequestError      the request says nothing that could be done
├── ChecksumError        other bytes came than were sent
├── TooSlowError         nothing comes any more
├── NoRoomError          the disk is full
├── TooLargeError        more bytes than are taken
└── TooManyError         too often, or too many at a time
"""

from collections.abc import Sequence

from tasks.errors import Problem


class ConsoleError(Exception):
    """A request that is not done.

    Args:
        message: One clear sentence.
        faults: All that is wrong, where that is more.
    """

    status = 500
    code = "internal"

    def __init__(self, message: str, problems: Sequence[Problem] = ()) -> None:
        super().__init__(message)
        self.message = message
        self.problems = tuple(problems)


class UnauthorizedError(ConsoleError):
    """No key, or one that is nobody's."""

    status = 401
    code = "unauthorized"


class ForbiddenError(ConsoleError):
    """The key does not go so far."""

    status = 403
    code = "forbidden"


class NotFoundError(ConsoleError):
    """There is no such thing, for this account."""

    status = 404
    code = "not_found"


class ConflictError(ConsoleError):
    """The thing is not where this can be done to it."""

    status = 409
    code = "conflict"


class BadRequestError(ConsoleError):
    """The request says nothing that could be done."""

    status = 400
    code = "bad_request"


class ChecksumError(ConsoleError):
    """Other bytes came than were sent; tus has a status of its own for it."""

    status = 460
    code = "checksum_mismatch"


class TooSlowError(ConsoleError):
    """Nothing comes any more."""

    status = 408
    code = "too_slow"


class InsufficientStorageError(ConsoleError):
    """The disk is full."""

    status = 507
    code = "no_room"


class TooLargeError(ConsoleError):
    """More bytes than are taken."""

    status = 413
    code = "too_large"


class TooManyError(ConsoleError):
    """Too often, or too many at a time.

    Args:
        message: One clear sentence.
        retry_after_s: When it may be tried again.
    """

    status = 429
    code = "too_many"

    def __init__(self, message: str, retry_after_s: int = 1) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s
