import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.process.logging_setup import set_up_logging

ATTACK = "\x1b[2J\n12:00:00 cpu         INFO    forged\u202e\x9b"


def logged(log_format: str) -> list[str]:
    program = (
        "import logging\n"
        "from tasks.process.logging_setup import set_up_logging\n"
        f"set_up_logging({log_format!r}, 'gpu-40gb-0')\n"
        "log = logging.getLogger('tasks.stages.runner')\n"
        "log.info('%s begins', 'train', extra={'job': 'j1', 'stage': 'train'})\n"
        "logging.getLogger('httpx2').info('GET https://host/path?signature=secret')\n"
        "try: 1 / 0\n"
        "except ZeroDivisionError: log.exception('failed')\n"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", program], capture_output=True, text=True, check=True
    )
    return done.stderr.splitlines()


def test_text_names_the_process_the_job_and_the_stage() -> None:
    first = logged("text")[0]
    assert "gpu-40gb-0" in first
    assert first.endswith("train begins [job=j1 stage=train]")


@pytest.mark.parametrize(
    ("level", "shown"),
    [
        ("debug", ["ours", "ours at info", "ours at warning", "theirs at info"]),
        ("info", ["ours at info", "ours at warning", "theirs at info"]),
        ("warning", ["ours at warning"]),
        ("error", []),
    ],
)
def test_level_is_that_of_our_packages_and_of_others_from_info(
    level: str, shown: list[str]
) -> None:
    program = (
        "import logging\n"
        "from tasks.process.logging_setup import set_up_logging\n"
        f"set_up_logging('text', 'cpu', {level!r})\n"
        "ours, theirs = map(logging.getLogger, ('worker.worker', 'kombu'))\n"
        "ours.debug('ours'); ours.info('ours at info'); ours.warning('ours at warning')\n"
        "theirs.debug('theirs, a secret'); theirs.info('theirs at info')\n"
        "logging.getLogger('httpx2').info('a signed address')\n"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", program], capture_output=True, text=True, check=True
    )
    assert [line.split(maxsplit=4)[4] for line in done.stderr.splitlines()] == shown


def test_no_request_is_logged_with_its_address() -> None:
    assert "signature" not in "".join(logged("text"))


def test_json_is_one_object_a_line() -> None:
    begins, failed = (json.loads(line) for line in logged("json"))
    assert (begins["message"], begins["job"], begins["stage"]) == ("train begins", "j1", "train")
    assert (begins["process"], begins["level"]) == ("gpu-40gb-0", "INFO")
    assert "ZeroDivisionError" in failed["exception"]


@pytest.fixture(scope="module")
def root() -> Iterator[logging.Logger]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield root
    root.handlers[:], root.level = handlers, level
    for package in ("tasks", "routing", "worker", "console"):
        logging.getLogger(package).setLevel(logging.NOTSET)


def formatted(root: logging.Logger, log_format: Literal["text", "json"], text: str) -> list[str]:
    set_up_logging(log_format, "cpu")
    record = logging.makeLogRecord({"msg": "%s of %s", "args": (text, text), "levelname": "INFO"})
    record.__dict__.update(job=text, stage=text)
    try:
        raise ValueError(text)
    except ValueError:
        record.exc_info = sys.exc_info()
    return root.handlers[0].format(record).split("\n")


@given(text=st.text() | st.just(ATTACK))
def test_no_text_forges_a_line_of_the_log(root: logging.Logger, text: str) -> None:
    first, *traceback = formatted(root, "text", text)
    [document] = formatted(root, "json", text)
    assert json.loads(document)["message"] == f"{text} of {text}"
    for line in (first, *traceback, document):
        assert line.isprintable()
    assert traceback[0] == "    Traceback (most recent call last):"
    assert all(line.startswith("    ") for line in traceback)


def test_the_error_of_a_thread_is_logged() -> None:
    program = (
        "import threading\n"
        "from tasks.process.logging_setup import set_up_logging\n"
        "set_up_logging('text', 'cpu')\n"
        f"def fail(): raise ValueError({ATTACK!r})\n"
        "threading.Thread(target=fail, name='reader').start()\n"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", program], capture_output=True, text=True, check=True
    )
    first, *traceback = done.stderr.removesuffix("\n").split("\n")
    assert first.endswith("ERROR   reader ended by an error")
    assert all(line.isprintable() and line.startswith("    ") for line in traceback)
