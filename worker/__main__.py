"""The entry point: ``training-worker`` and ``python -P -m worker``."""

import io
import os
import sys
import traceback
from contextlib import suppress
from typing import NoReturn, TextIO

from tasks.escaping import escaped_lines
from worker.cli.app import cli


def main() -> None:
    """Run the command line; end it quietly with 0 when the reader of its output is gone."""
    if sys.stdout is None:  # started with standard output closed
        cli(prog_name="training-worker")
        return
    sys.stdout = output = _PipeOutput(sys.stdout)
    try:
        cli(prog_name="training-worker")
    except Exception:  # noqa: BLE001 - a bug; its traceback may quote what users sent
        sys.stderr.write(escaped_lines(traceback.format_exc()))
        sys.exit(1)
    finally:
        # A later flush, at the interpreter's exit, would print an error. The exit code stays.
        with suppress(SystemExit):
            output.flush()


class _PipeOutput(io.TextIOWrapper):
    """Standard output that exits with 0 when its reader is gone, as in ``list | head -1``."""

    def __init__(self, stdout: TextIO) -> None:
        raw = io.FileIO(stdout.fileno(), "w", closefd=False)
        super().__init__(
            io.BufferedWriter(raw),
            encoding=stdout.encoding,
            errors=stdout.errors,
            line_buffering=stdout.isatty(),
        )

    def write(self, text: str) -> int:
        try:
            return super().write(text)
        except BrokenPipeError:
            self._exit()

    def flush(self) -> None:
        try:
            super().flush()
        except BrokenPipeError:
            self._exit()

    def _exit(self) -> NoReturn:
        os.dup2(os.open(os.devnull, os.O_WRONLY), self.fileno())
        raise SystemExit(0)


if __name__ == "__main__":
    main()
