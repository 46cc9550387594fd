"""Errors of jobs and commands, as they are raised here and as they travel.

Only ``JobError`` itself crosses the wire, with four plain arguments; ``for_wire`` makes one of any
error below. ``worker/errors.py`` adds the errors of a worker's host.

JobError
├── UsageError            a wrong command line
├── SettingsError         invalid or unknown settings, with all their problems
├── InvalidJobError       a job that cannot run, with all its problems
├── DatasetError          a dataset that cannot be trained on, with all its problems
├── BaseModelError        a base model that is missing or incomplete, with all its problems
├── InvalidDestinationError  results cannot be copied where the job asks, with all problems
├── BaseModelFilesError   a base model whose files cannot be read
├── QuotaExceededError    a quota of the tenant refuses the job
├── DoesNotFitJobError    no GPU class holds the job
├── TrainerError          the trainer stopped without a result
│   └── UnreadableFileError   a file of the store that the trainer reads is damaged
├── CancelledJobError     the job was cancelled
├── StoreError            an object could not be read or written
│   └── MissingObjectError    the store has no such object
├── UnknownJobError       there is no such job
├── UnreadableJobError    a record that this version of the program cannot read
├── SupersededError       a newer start of the stage has taken over
├── InvalidStateError     the job's state does not allow the request
├── NoBrokerError         there is no broker, or it is unavailable
├── NoWorkerError         no live worker serves the queue
├── NotInstalledError     an optional part of this package is missing
├── ApiKeysError          the file of API keys cannot be read or written
└── ApiKeyNameError      an API key's name is taken or unknown
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Literal

from tasks.escaping import escaped, safe_message, shortened

# Messages are copied to every log, record and result, so they stay small.
_MAX_LISTED_PROBLEMS = 20
_TEXT_LIMITS = {"location": 300, "message": 1000, "remedy": 1000}


class ErrorCode(StrEnum):
    """Why a job or a command failed; each has its own exit code on the command line."""

    INTERNAL = "internal"
    INVALID_JOB = "invalid_job"
    INVALID_DATASET = "invalid_dataset"
    INVALID_MODEL = "invalid_model"
    INVALID_DESTINATION = "invalid_destination"
    NO_BROKER = "no_broker"
    NO_WORKER = "no_worker"
    DOES_NOT_FIT = "does_not_fit"
    TRAINER_FAILED = "trainer_failed"
    CANCELLED = "cancelled"
    UNKNOWN_JOB = "unknown_job"
    STORE = "store"
    OUT_OF_MEMORY = "out_of_memory"
    GPU_FAILED = "gpu_failed"
    DIVERGED = "diverged"
    SUPERSEDED = "superseded"
    NOT_INSTALLED = "not_installed"
    UNREADABLE_FILE = "unreadable_file"
    INVALID_STATE = "invalid_state"
    QUOTA_EXCEEDED = "quota_exceeded"
    USAGE = "usage"


EXIT_CODES = {
    ErrorCode.INTERNAL: 1,
    # The shell's convention for a wrong command line.
    ErrorCode.USAGE: 2,
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
    ErrorCode.GPU_FAILED: 19,
    ErrorCode.INVALID_DESTINATION: 20,
    ErrorCode.QUOTA_EXCEEDED: 21,
}

DEAD_LETTER_CODES = frozenset(
    {
        ErrorCode.INTERNAL,
        ErrorCode.TRAINER_FAILED,
        ErrorCode.STORE,
        ErrorCode.OUT_OF_MEMORY,
        ErrorCode.GPU_FAILED,
    }
)
"""Infrastructure failures: the job is dead-lettered, and can be replayed after a fix."""


ProblemCode = Literal[
    "invalid", "missing", "unknown_option", "unknown_choice", "wrong_type", "out_of_range"
]
"""What kind of problem an input has: another value is needed, a value was not given, no option has
this name, the value is none of the choices, has another type, or is outside its bounds."""


@dataclass(frozen=True)
class Problem:
    """One thing wrong with a user's input. Its texts are escaped and bounded.

    Attributes:
        location: The field (``training.lora_rank_dim``) or the file (``cat.png``).
        message: The problem, and what would be right.
        remedy: What to do, if that is more than to correct the input.
        retryable: The same input may be accepted later, because a server was unavailable.
        code: What kind of problem it is, for programs.
    """

    location: str
    message: str
    remedy: str = ""
    retryable: bool = False
    code: ProblemCode = "invalid"

    @property
    def missing(self) -> bool:
        """Whether a required value was not given: in a form being filled in, no error yet."""
        return self.code == "missing"

    def __post_init__(self) -> None:
        """Escape and cut the texts, which may quote what users sent."""
        for name, limit in _TEXT_LIMITS.items():
            text = escaped(getattr(self, name)[: limit + 1])
            object.__setattr__(self, name, shortened(text, limit))

    def __str__(self) -> str:
        """Return one line for a person."""
        text = f"{self.message}; {self.remedy}" if self.remedy else self.message
        return f"{self.location}: {text}" if self.location else text


class JobError(Exception):
    """A failure of a job in the one form that survives JSON results.

    Args:
        message: One clear sentence, or a list of problems, one per line. What does not print is
            escaped, further lines are indented, and a long message is cut.
        code: An ``ErrorCode`` value.
        stage: The stage it happened in, or ``submit``.
        retryable: Whether a retry of the same job could succeed.
    """

    def __init__(
        self,
        message: str,
        code: str = ErrorCode.INTERNAL,
        stage: str = "submit",
        retryable: bool = False,
    ) -> None:
        self.message = safe_message(message)
        super().__init__(self.message, str(code), stage, retryable)
        self.code = ErrorCode(code)
        self.stage = stage
        self.retryable = retryable

    def __str__(self) -> str:
        """Return the message alone."""
        return self.message

    def for_wire(self) -> "JobError":
        """Return the same failure as the plain ``JobError`` that JSON results can carry."""
        return JobError(self.message, self.code, self.stage, self.retryable)


class UsageError(JobError):
    """A command line that names something unknown, or misses an argument."""

    def __init__(self, message: str) -> None:
        super().__init__(message, ErrorCode.USAGE)


class _ProblemsError(JobError):
    """A user's mistakes, reported all at once.

    Args:
        problems: The mistakes; the first ones are kept and listed, the rest are counted.
        stage: The stage.
        more: The number of mistakes that are not among them.
    """

    _code: ErrorCode
    _title: str

    def __init__(self, problems: Sequence[Problem], stage: str = "submit", more: int = 0) -> None:
        self.problems = tuple(problems[:_MAX_LISTED_PROBLEMS])
        self.more = more + len(problems) - len(self.problems)
        lines = [f"{self._title}:", *(f"  - {problem}" for problem in self.problems)]
        if self.more:
            lines.append(f"  - and {self.more:,} more")
        retryable = bool(problems) and all(problem.retryable for problem in problems)
        super().__init__("\n".join(lines), self._code, stage, retryable=retryable)


class SettingsError(_ProblemsError):
    """Settings that are invalid or unknown."""

    _code = ErrorCode.USAGE
    _title = "the settings of this process are invalid"


class InvalidJobError(_ProblemsError):
    """A job description that cannot run."""

    _code = ErrorCode.INVALID_JOB
    _title = "the job cannot run as described"


class DatasetError(_ProblemsError):
    """A dataset that cannot be trained on."""

    _code = ErrorCode.INVALID_DATASET
    _title = "the dataset cannot be trained on"


class BaseModelError(_ProblemsError):
    """A base model that is missing or incomplete."""

    _code = ErrorCode.INVALID_MODEL
    _title = "the base model cannot be used"


class InvalidDestinationError(_ProblemsError):
    """Results cannot be copied where the job asks."""

    _code = ErrorCode.INVALID_DESTINATION
    _title = "the results cannot be copied where publish_to asks"


class BaseModelFilesError(JobError):
    """A base model whose files cannot be read."""

    def __init__(self, model: str, problem: str) -> None:
        self.path, self.problem = model, problem
        message = f"the base model {model} cannot be used: {problem}"
        super().__init__(message, ErrorCode.INVALID_MODEL)


class DoesNotFitJobError(JobError):
    """A job that no GPU memory class holds.

    Args:
        message: The numbers.
        remedy: The options to change.
    """

    def __init__(self, message: str, remedy: str) -> None:
        super().__init__(f"{message}; {remedy}", ErrorCode.DOES_NOT_FIT)
        self.problems = (Problem("training", message, remedy, code="out_of_range"),)


class QuotaExceededError(JobError):
    """A quota of the tenant refuses another job.

    Args:
        message: Which one, and what to do.
        retry_after_s: When the same job may be accepted, in seconds.
    """

    def __init__(self, message: str, retry_after_s: int) -> None:
        super().__init__(message, ErrorCode.QUOTA_EXCEEDED, retryable=True)
        self.retry_after_s = retry_after_s


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


class UnreadableFileError(TrainerError):
    """A file of the store that the trainer reads is damaged.

    Args:
        message: The trainer's own.
        stage: The stage.
        file_key: The file's store key.
    """

    def __init__(self, message: str, stage: str, file_key: str) -> None:
        super().__init__(message, stage, ErrorCode.UNREADABLE_FILE)
        self.file_key = file_key


def cancelled_message(job_id: str) -> str:
    """Return the message of a cancelled job."""
    return f"job {job_id} was cancelled"


class CancelledJobError(JobError):
    """The job was cancelled."""

    def __init__(self, job_id: str, stage: str) -> None:
        super().__init__(cancelled_message(job_id), ErrorCode.CANCELLED, stage)


class StoreError(JobError):
    """An object could not be read from the store, or written to it."""

    def __init__(self, message: str, stage: str = "submit", retryable: bool = True) -> None:
        super().__init__(message, ErrorCode.STORE, stage, retryable)


class MissingObjectError(StoreError):
    """The store has no such object, or is not mounted."""

    def __init__(self, key: str) -> None:
        super().__init__(f"the store holds no {key}")


class UnknownJobError(JobError):
    """There is no such job, or its record has expired."""

    def __init__(self, job_id: str) -> None:
        super().__init__(f"there is no job {job_id}", ErrorCode.UNKNOWN_JOB)


class UnreadableJobError(JobError):
    """A record that this version of the program cannot read.

    Args:
        job_id: The job.
        version: The record's version.
        known_version: The newest version that this program reads.
        problem: The reason, for a record of a known version.
    """

    def __init__(self, job_id: str, version: int, known_version: int, problem: str = "") -> None:
        message = f"job {job_id} has version {version}, and this program reads {known_version}"
        if version <= known_version:
            message += f" but not this record: {problem}"
        super().__init__(message)


class SupersededError(JobError):
    """Another start of the stage holds a newer attempt number, or the job has ended."""

    def __init__(self, job_id: str, attempt: int) -> None:
        super().__init__(
            f"attempt {attempt} of job {job_id} is no longer the newest", ErrorCode.SUPERSEDED
        )


class InvalidStateError(JobError):
    """The job's state does not allow the request."""

    def __init__(self, job_id: str, problem: str) -> None:
        super().__init__(f"job {job_id} is {problem}", ErrorCode.INVALID_STATE)


class NoBrokerError(JobError):
    """There is no broker, it does not answer, or it refuses requests."""

    def __init__(self, message: str) -> None:
        super().__init__(message, ErrorCode.NO_BROKER)


class NoWorkerError(JobError):
    """No live worker serves the queue that a job needs."""

    def __init__(self, message: str) -> None:
        super().__init__(message, ErrorCode.NO_WORKER)


class NotInstalledError(JobError):
    """An optional part of this package is missing."""

    def __init__(self, what: str, extra: str) -> None:
        super().__init__(
            f"{what} is not installed: pip install 'training-worker[{extra}]'",
            ErrorCode.NOT_INSTALLED,
        )


class ApiKeysError(JobError):
    """The file of API keys cannot be read or written."""

    def __init__(self, path: Path, problem: str) -> None:
        super().__init__(f"the file of API keys {path} {problem}", ErrorCode.UNREADABLE_FILE)


class ApiKeyNameError(JobError):
    """The name of an API key is taken or unknown."""

    def __init__(self, message: str) -> None:
        super().__init__(message, ErrorCode.INVALID_STATE)
