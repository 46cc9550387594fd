import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

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
    (DoesNotFitJobError("too large", "set less"), ErrorCode.DOES_NOT_FIT, "submit", False),
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


@given(st.text() | st.builds(lambda text, n: text * n, st.text(max_size=3), st.integers(0, 9000)))
def test_a_message_is_short_and_controls_nothing(text: str) -> None:
    error = JobError(text)
    assert len(json.dumps(error.args)) < 4200
    first, *rest = error.message.split("\n")
    assert first.isprintable()
    assert all(line.isprintable() and line.startswith(" ") for line in rest)
    assert error.for_wire().message == error.message


def test_a_message_that_is_cut_at_a_line_end_stays_as_it_is() -> None:
    for length in range(600, 640):
        message = JobError("\n\U0002ebe1\x1f" * length).message
        assert JobError(message).message == message


def test_a_long_message_keeps_its_beginning_and_its_end() -> None:
    message = JobError("the trainer failed\n" + "progress\n" * 10_000 + "out of memory").message
    assert message.startswith("the trainer failed\n  progress")
    assert message.endswith("out of memory")


@given(st.text(), st.text(), st.text())
def test_a_problem_is_one_line_of_printable_text(location: str, message: str, remedy: str) -> None:
    assert str(Problem(location, message, remedy)).isprintable()


def test_an_unknown_error_code_is_refused() -> None:
    with pytest.raises(ValueError, match="bogus"):
        JobError("words", "bogus")
