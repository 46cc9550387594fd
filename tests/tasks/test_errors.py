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

FAULTS = [Problem("training.lora_rank_dim", "must be above 0"), Problem("", "is no job")]
ERRORS = [
    (InvalidJobError(FAULTS), ErrorCode.INVALID_JOB, "submit", False),
    (DatasetError(FAULTS, "prepare"), ErrorCode.INVALID_DATASET, "prepare", False),
    (BaseModelError(FAULTS, "prepare"), ErrorCode.INVALID_MODEL, "prepare", False),
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
        DatasetError([Problem("a.zip", "broke off", retryable=True)], "prepare"),
        ErrorCode.INVALID_DATASET,
        "prepare",
        True,
    ),
    (
        DatasetError([Problem("a.zip", "broke off", retryable=True), *FAULTS], "prepare"),
        ErrorCode.INVALID_DATASET,
        "prepare",
        False,
    ),
    (StoreError("cannot write k"), ErrorCode.STORE, "submit", True),
    (JobError("plain"), ErrorCode.INTERNAL, "submit", False),
]


def test_every_error_code_has_an_exit_code_of_its_own() -> None:
    assert set(EXIT_CODES) == set(ErrorCode)
    assert len(set(EXIT_CODES.values())) == len(ErrorCode)


def test_exit_codes_follow_the_shells_conventions() -> None:
    # 0 is success, 2 a wrong command line, and 126 and above are the shell's own.
    assert 0 not in EXIT_CODES.values()
    assert [code for code, number in EXIT_CODES.items() if number == 2] == [ErrorCode.USAGE]
    assert max(EXIT_CODES.values()) < 126


@pytest.mark.parametrize(("error", "code", "stage", "retryable"), ERRORS)
def test_an_error_survives_its_way_through_a_json_result(
    error: JobError, code: ErrorCode, stage: str, retryable: bool
) -> None:
    wire = error.for_wire()
    assert type(wire) is JobError
    arrived = JobError(*json.loads(json.dumps(wire.args)))
    for form in (error, wire, arrived):
        assert (form.code, form.stage, form.retryable) == (code, stage, retryable)
        assert str(form) == form.message == error.message


def test_an_errors_own_arguments_are_those_of_the_wire() -> None:
    for error, *_ in ERRORS:
        assert error.args == error.for_wire().args


def test_every_fault_gets_a_line_of_its_own() -> None:
    lines = str(InvalidJobError(FAULTS)).splitlines()
    assert lines == [
        "the job cannot run as described:",
        "  - training.lora_rank_dim: must be above 0",
        "  - is no job",
    ]


def test_an_unknown_code_is_a_programmers_mistake() -> None:
    with pytest.raises(ValueError, match="bogus"):
        JobError("words", "bogus")
