import logging
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from worker.cli.app import cli
from worker.cli.reports.output import stdout

Invoke = Callable[..., str]


@pytest.fixture
def logging_of_tests() -> Iterator[None]:
    """Undo what a command with ``-v`` does to the logging of its process."""
    root, hook = logging.getLogger(), threading.excepthook
    handlers, level = root.handlers[:], root.level
    levels = {name: logging.getLogger(name).level for name in root.manager.loggerDict}
    yield
    root.handlers[:], root.level, threading.excepthook = handlers, level, hook
    for name in [*root.manager.loggerDict]:
        logging.getLogger(name).setLevel(levels.get(name, logging.NOTSET))


@pytest.fixture
def invoke(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, logging_of_tests: None) -> Invoke:
    """Run a command in this process, with a fresh home and these settings."""
    for name in [name for name in os.environ if name.startswith("TRAINING_")]:
        monkeypatch.delenv(name)
    # It reads COLUMNS once, in whichever test uses it first.
    monkeypatch.setattr(stdout, "_width", 200)

    def run(*arguments: str, code: int = 0, **settings: str) -> str:
        env = {"TRAINING_HOME": str(tmp_path / "home"), **settings}
        result = CliRunner().invoke(cli, arguments, env=env)
        assert result.exit_code == code, (result.output, result.exception)
        return result.output

    return run
