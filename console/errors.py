"""Errors of the console, beside those of jobs (``tasks/errors.py``).

ConsoleError
├── BadRequestError            400, malformed request
├── UnauthorizedError          401, no valid key
│   └── InvalidLinkError       401, a link that is wrong or has ended
├── ForbiddenError             403, insufficient permission
├── NotFoundError              404, absent, or not visible to the caller
├── TooSlowError               408, the sender was idle for too long
├── ConflictError              409, not possible in the current state
├── PreconditionFailedError    412, another version of tus
├── TooLargeError              413, too many bytes
├── UnsupportedMediaTypeError  415, a body of another type
├── RangeNotSatisfiableError   416, the file has no such range
├── MisdirectedError           421, a host name that is not served here
├── InvalidRequestError        422, a parameter, header or form that cannot be
├── TooManyError               429, too often, or too many at a time
├── UnavailableError           503, the broker is unavailable
├── ApiKeysUnavailableError    503, the file of API keys cannot be read
├── ChecksumError              460, the bytes differ from their checksum
└── InsufficientStorageError   507, the disk is full
"""

from typing import ClassVar

from tasks.errors import Problem


class ConsoleError(Exception):
    """A request failed.

    Args:
        message: One clear sentence.
        location: The header, parameter or field that is wrong; empty for the request as a whole.
    """

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal"
    remedy: ClassVar[str] = "look into the console's log"
    retryable: ClassVar[bool] = False

    def __init__(self, message: str, location: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.location = location
        self.headers: dict[str, str] = {}

    @property
    def problems(self) -> tuple[Problem, ...]:
        """What is wrong, and what to do."""
        return (Problem(self.location, self.message, self.remedy, self.retryable),)


class BadRequestError(ConsoleError):
    """The request is malformed."""

    status = 400
    code = "bad_request"
    remedy = "correct it as /v1/docs describes it"


class UnauthorizedError(ConsoleError):
    """The request has no valid key."""

    status = 401
    code = "unauthorized"
    remedy = "send a valid key: Authorization: Bearer twk_..."

    def __init__(self, message: str) -> None:
        super().__init__(message, "Authorization")
        self.headers = {"WWW-Authenticate": "Bearer"}


class InvalidLinkError(UnauthorizedError):
    """The link of the request is wrong, or has ended."""

    remedy = "ask its sender for a new link"

    def __init__(self) -> None:
        super().__init__("the link is invalid, or has expired; get a new one")
        self.location = "signature"


class ForbiddenError(ConsoleError):
    """The key has insufficient permission."""

    status = 403
    code = "forbidden"
    remedy = "use a key that may do this"


class NotFoundError(ConsoleError):
    """The thing is absent, or the caller may not see it."""

    status = 404
    code = "not_found"
    remedy = "check the id and the key: a thing expires, and only its tenant sees it"


class TooSlowError(ConsoleError):
    """The sender was idle for too long."""

    status = 408
    code = "request_timeout"
    remedy = "send it again; an upload resumes from Upload-Offset"
    retryable = True


class ConflictError(ConsoleError):
    """The request is not possible in the current state."""

    status = 409
    code = "conflict"
    remedy = "read the current state, and continue from there"


class PreconditionFailedError(ConsoleError):
    """The request names another version of tus.

    Args:
        version: The version that this console has.
    """

    status = 412
    code = "precondition_failed"
    remedy = "send the version that Tus-Version names"

    def __init__(self, version: str) -> None:
        super().__init__(f"Tus-Resumable must be {version}", "Tus-Resumable")
        self.headers = {"Tus-Version": version}


class TooLargeError(ConsoleError):
    """The request has too many bytes."""

    status = 413
    code = "content_too_large"
    remedy = "send fewer bytes"


class UnsupportedMediaTypeError(ConsoleError):
    """The body of the request has another type than the one that is read.

    Args:
        media_type: The type that is read.
    """

    status = 415
    code = "unsupported_media_type"
    remedy = "send this type, with a body of it"

    def __init__(self, media_type: str) -> None:
        super().__init__(f"Content-Type must be {media_type}", "Content-Type")


class RangeNotSatisfiableError(ConsoleError):
    """The file has no such range.

    Args:
        size: The size of the file in bytes.
    """

    status = 416
    code = "range_not_satisfiable"
    remedy = "name bytes that the file has"

    def __init__(self, size: int) -> None:
        super().__init__(f"the file has {size:,} bytes, and none of these", "Range")
        self.headers = {"Accept-Ranges": "bytes", "Content-Range": f"bytes */{size}"}


class MisdirectedError(ConsoleError):
    """The host name of the request is not served here."""

    status = 421
    code = "misdirected_request"
    remedy = "ask the operator to add it to TRAINING_ALLOWED_HOSTS"

    def __init__(self) -> None:
        message = "this host name is not served here; add it to TRAINING_ALLOWED_HOSTS"
        super().__init__(message, "Host")


class InvalidRequestError(ConsoleError):
    """A parameter, a header or a form of the request is impossible.

    Args:
        message: What is wrong.
        location: Where.
        remedy: What to do.
    """

    status = 422
    code = "invalid_request"

    def __init__(self, message: str, location: str, remedy: str) -> None:
        super().__init__(message, location)
        self._remedy = remedy

    @property
    def problems(self) -> tuple[Problem, ...]:
        """What is wrong, and what to do."""
        return (Problem(self.location, self.message, self._remedy),)


class TooManyError(ConsoleError):
    """The caller makes too many requests, or too many at a time.

    Args:
        message: One clear sentence.
        retry_after_s: When the caller may retry.
    """

    status = 429
    code = "too_many_requests"
    remedy = "send it again after the seconds in Retry-After"
    retryable = True

    def __init__(self, message: str, retry_after_s: int = 1) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s
        self.headers = {"Retry-After": str(retry_after_s)}


class UnavailableError(ConsoleError):
    """The broker is unavailable, which holds what the request needs."""

    status = 503
    code = "no_broker"
    remedy = "send it again later; the operator runs training-worker doctor"
    retryable = True

    def __init__(self) -> None:
        super().__init__("the broker is unavailable")
        self.headers = {"Retry-After": "5"}


class ApiKeysUnavailableError(ConsoleError):
    """The file of API keys cannot be read."""

    status = 503
    code = "api_keys_unavailable"
    remedy = "send it again later; the console's log has the reason"
    retryable = True

    def __init__(self) -> None:
        super().__init__("the API keys cannot be read")
        self.headers = {"Retry-After": "5"}


class ChecksumError(ConsoleError):
    """The bytes differ from their checksum; tus defines this status."""

    status = 460
    code = "checksum_mismatch"
    remedy = "send the same bytes again"
    retryable = True


class InsufficientStorageError(ConsoleError):
    """The disk is full, or a tenant's quota."""

    status = 507
    code = "insufficient_storage"
    remedy = "delete uploads that no waiting job needs, or retry later"
