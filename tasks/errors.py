"""Errors of a job, as they are raised here and as they travel.

JobError                 the only one that crosses the wire
├── InvalidJobError      a config that cannot run, with every fault in it
├── DatasetError         a data set that cannot be trained on, with every fault in it
├── BaseModelError       a base model that is missing or incomplete
├── BaseModelFilesError  a base model whose files cannot be used
├── DoesNotFitJobError   no GPU class holds the job
├── TrainerError         the trainer stopped without a result
├── CancelledJobError    somebody cancelled the job
├── UsageError           a wrong command line
└── StoreError           an artifact could not be read or written
    └── MissingObjectError   there is no such object
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum


class ErrorCode(StrEnum):
    """Why a job or a command failed; each has an exit code of its own on the command line."""

    INTERNAL = "internal"
    INVALID_JOB = "invalid_job"
    INVALID_DATASET = "invalid_dataset"
    INVALID_MODEL = "invalid_model"
    NO_BROKER = "no_broker"
    NO_WORKER = "no_worker"
    DOES_NOT_FIT = "does_not_fit"
    TRAINER_FAILED = "trainer_failed"
    CANCELLED = "cancelled"
    UNKNOWN_JOB = "unknown_job"
    STORE = "store"
    OUT_OF_MEMORY = "out_of_memory"
    DIVERGED = "diverged"
    SUPERSEDED = "superseded"
    NOT_INSTALLED = "not_installed"
    UNREADABLE_FILE = "unreadable_file"
    INVALID_STATE = "invalid_state"
    USAGE = "usage"


EXIT_CODES = {
    ErrorCode.INTERNAL: 1,
    ErrorCode.INVALID_JOB: 3,
    ErrorCode.INVALID_DATASET: 4,
    ErrorCode.INVALID_MODEL: 5,
    ErrorCode.NO_BROKER: 6,
    ErrorCode.NO_WORKER: 7,
    ErrorCode.DOES_NOT_FIT: 8,
    ErrorCode.TRAINER_FAILED: 9,
    ErrorCode.CANCELLED: 10,
    ErrorCode.UNKNOWN_JOB: 11,
    ErrorCode.STORE: 12,
    ErrorCode.OUT_OF_MEMORY: 13,
    ErrorCode.DIVERGED: 14,
    ErrorCode.SUPERSEDED: 15,
    ErrorCode.NOT_INSTALLED: 16,
    ErrorCode.UNREADABLE_FILE: 17,
    ErrorCode.INVALID_STATE: 18,
    # The shell's convention for a wrong command line.
    ErrorCode.USAGE: 2,
}


DEAD_CODES = frozenset(
    {ErrorCode.INTERNAL, ErrorCode.TRAINER_FAILED, ErrorCode.STORE, ErrorCode.OUT_OF_MEMORY}
)
"""Failures that are not the job's own fault: once the cause is mended, it can be replayed."""


@dataclass(frozen=True)
class Problem:
    """One thing wrong with what a user gave us.

    Attributes:
        location: The field (``training.lora_rank_dim``) or the file (``cat.png``).
        message: What is wrong, and what would be right.
        remedy: What to do, where that is more than to put it right.
        retryable: The same input may be accepted later: a server was unavailable.
    """

    location: str
    message: str
    remedy: str = ""
    retryable: bool = False

    def __str__(self) -> str:
        """One line for a person."""
        told = f"{self.message}; {self.remedy}" if self.remedy else self.message
        return f"{self.location}: {told}" if self.location else told


class JobError(Exception):
    """A job's failure in the one form that survives JSON results.

    Args:
        message: One clear sentence, or a list of faults a line each.
        code: An ``ErrorCode`` value.
        stage: The stage it happened in, or ``submit``.
        retryable: Whether the same job could succeed when tried again.
    """

    def __init__(
        self,
        message: str,
        code: str = ErrorCode.INTERNAL,
        stage: str = "submit",
        retryable: bool = False,
    ) -> None:
        super().__init__(message, str(code), stage, retryable)
        self.message = message
        self.code = ErrorCode(code)
        self.stage = stage
        self.retryable = retryable

    def __str__(self) -> str:
        """The message alone."""
        return self.message

    def for_wire(self) -> "JobError":
        """The same failure as the plain ``JobError`` that JSON results can carry."""
        return JobError(self.message, self.code, self.stage, self.retryable)


# A message of more lines is read by nobody, and is copied wherever the error goes.
_MOST_TOLD = 100


class _ProblemsError(JobError):
    """A user's mistakes, reported all at once."""

    _code: ErrorCode
    _title: str

    def __init__(self, problems: Sequence[Problem], stage: str = "submit") -> None:
        self.problems = tuple(problems)
        told = [f"  - {problem}" for problem in problems[:_MOST_TOLD]]
        if len(problems) > _MOST_TOLD:
            told.append(f"  - and {len(problems) - _MOST_TOLD} more")
        lines = "\n".join(told)
        retryable = bool(problems) and all(problem.retryable for problem in problems)
        super().__init__(f"{self._title}:\n{lines}", self._code, stage, retryable=retryable)


class InvalidJobError(_ProblemsError):
    """A job description that cannot run."""

    _code = ErrorCode.INVALID_JOB
    _title = "the job cannot run as described"


class DatasetError(_ProblemsError):
    """A data set that cannot be trained on."""

    _code = ErrorCode.INVALID_DATASET
    _title = "the data set cannot be trained on"


class BaseModelError(_ProblemsError):
    """A base model that is missing or incomplete."""

    _code = ErrorCode.INVALID_MODEL
    _title = "the base model cannot be used"


class BaseModelFilesError(JobError):
    """A base model whose files cannot be used."""

    def __init__(self, model: str, problem: str) -> None:
        message = f"the base model {model} cannot be used: {problem}"
        super().__init__(message, ErrorCode.INVALID_MODEL)


class DoesNotFitJobError(JobError):
    """A job that no GPU memory class holds."""

    def __init__(self, message: str) -> None:
        super().__init__(message, ErrorCode.DOES_NOT_FIT)


class TrainerError(JobError):
    """The trainer stopped without a result."""

    def __init__(
        self,
        message: str,
        stage: str,
        code: ErrorCode = ErrorCode.TRAINER_FAILED,
        retryable: bool = False,
    ) -> None:
        super().__init__(message, code, stage, retryable)


def cancelled_message(job_id: str) -> str:
    """What is told of a job that somebody cancelled."""
    return f"job {job_id} was cancelled"


class CancelledJobError(JobError):
    """Somebody cancelled the job."""

    def __init__(self, job_id: str, stage: str) -> None:
        super().__init__(cancelled_message(job_id), ErrorCode.CANCELLED, stage)


class StoreError(JobError):
    """An artifact could not be read or written."""

    def __init__(self, message: str, stage: str = "submit", retryable: bool = True) -> None:
        super().__init__(message, ErrorCode.STORE, stage, retryable)


class MissingObjectError(StoreError):
    """There is no such object in the store, or the store is not mounted."""

    def __init__(self, key: str) -> None:
        super().__init__(f"the store holds no {key}")


class NotInstalledError(JobError):
    """An optional part of this package is missing."""

    def __init__(self, what: str, extra: str) -> None:
        super().__init__(
            f"{what} is not installed: pip install 'training-worker[{extra}]'",
            ErrorCode.NOT_INSTALLED,
        )


class UsageError(JobError):
    """A command line that names something that does not exist, or misses something."""

    def __init__(self, message: str) -> None:
        super().__init__(message, ErrorCode.USAGE)
