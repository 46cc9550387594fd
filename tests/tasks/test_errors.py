import json

import pytest

from tasks.errors import (
    EXIT_CODES,
    BaseModelError,
    CancelledJobError,
    DatasetError,
    DoesNotFitJobError,
    ErrorCode,
    InvalidJobError,
    JobError,
    Problem,
    StoreError,
    TrainerError,
)

PROBLEMS = [Problem("training.lora_rank_dim", "must be above 0"), Problem("", "is no job")]
ERRORS = [
    (InvalidJobError(PROBLEMS), ErrorCode.INVALID_JOB, "submit", False),
    (DatasetError(PROBLEMS, "prepare"), ErrorCode.INVALID_DATASET, "prepare", False),
    (BaseModelError(PROBLEMS, "prepare"), ErrorCode.INVALID_MODEL, "prepare", False),
    (DoesNotFitJobError("too large"), ErrorCode.DOES_NOT_FIT, "submit", False),
    (TrainerError("it fell", "train"), ErrorCode.TRAINER_FAILED, "train", False),
    (
        TrainerError("too large", "train", ErrorCode.OUT_OF_MEMORY, True),
        ErrorCode.OUT_OF_MEMORY,
        "train",
        True,
    ),
    (CancelledJobError("j1", "train"), ErrorCode.CANCELLED, "train", False),
    (
        DatasetError([Problem("a.zip", "truncated", retryable=True)], "prepare"),
        ErrorCode.INVALID_DATASET,
        "prepare",
        True,
    ),
    (
        DatasetError([Problem("a.zip", "truncated", retryable=True), *PROBLEMS], "prepare"),
        ErrorCode.INVALID_DATASET,
        "prepare",
        False,
    ),
    (StoreError("cannot write k"), ErrorCode.STORE, "submit", True),
    (JobError("plain"), ErrorCode.INTERNAL, "submit", False),
]


def test_every_error_code_has_its_own_exit_code() -> None:
    assert set(EXIT_CODES) == set(ErrorCode)
    assert len(set(EXIT_CODES.values())) == len(ErrorCode)


def test_exit_codes_follow_the_shells_conventions() -> None:
    # 0 is success, 2 a wrong command line, and 126 and above are the shell's own.
    assert 0 not in EXIT_CODES.values()
    assert [code for code, number in EXIT_CODES.items() if number == 2] == [ErrorCode.USAGE]
    assert max(EXIT_CODES.values()) < 126


@pytest.mark.parametrize(("error", "code", "stage", "retryable"), ERRORS)
def test_an_error_survives_a_json_result(
    error: JobError, code: ErrorCode, stage: str, retryable: bool
) -> None:
    wire = error.for_wire()
    assert type(wire) is JobError
    arrived = JobError(*json.loads(json.dumps(wire.args)))
    for form in (error, wire, arrived):
        assert (form.code, form.stage, form.retryable) == (code, stage, retryable)
        assert str(form) == form.message == error.message


def test_errors_have_the_arguments_of_their_wire_form() -> None:
    for error, *_ in ERRORS:
        assert error.args == error.for_wire().args


def test_every_problem_has_its_own_line() -> None:
    lines = str(InvalidJobError(PROBLEMS)).splitlines()
    assert lines == [
        "the job cannot run as described:",
        "  - training.lora_rank_dim: must be above 0",
        "  - is no job",
    ]


def test_an_unknown_error_code_is_refused() -> None:
    with pytest.raises(ValueError, match="bogus"):
        JobError("words", "bogus")
