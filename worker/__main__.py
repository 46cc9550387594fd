"""The entry point: ``training-worker`` and ``python -P -m worker``."""

import io
import os
import sys
import traceback
from contextlib import suppress
from typing import TextIO

import typer

from tasks.escaping import escaped_lines
from worker.cli.app import cli


def main() -> None:
    """Run the command line; end it quietly with 0 when the reader of its output is gone.

    Without a reader of its messages it continues, and keeps its exit code.
    """
    if sys.stderr is not None:
        sys.stderr = _PipeOutput(sys.stderr, ends=False)
    if sys.stdout is None:  # started with standard output closed
        cli(prog_name="training-worker")
        return
    sys.stdout = output = _PipeOutput(sys.stdout, ends=True)
    try:
        cli(prog_name="training-worker")
    except Exception:  # noqa: BLE001 - a bug; its traceback may quote what users sent
        typer.echo(escaped_lines(traceback.format_exc()), nl=False, err=True)
        sys.exit(1)
    finally:
        # A later flush, at the interpreter's exit, would print an error. The exit code stays.
        with suppress(SystemExit):
            output.flush()


class _PipeOutput(io.TextIOWrapper):
    """A standard stream whose reader may be gone, as in ``list | head -1``.

    Args:
        stream: The stream.
        ends: Whether the process exits with 0 then; else what is written is dropped.
    """

    def __init__(self, stream: TextIO, *, ends: bool) -> None:
        raw = io.FileIO(stream.fileno(), "w", closefd=False)
        super().__init__(
            io.BufferedWriter(raw),
            encoding=stream.encoding,
            errors=stream.errors,
            line_buffering=stream.isatty() or not ends,
        )
        self._ends = ends

    def write(self, text: str) -> int:
        try:
            return super().write(text)
        except BrokenPipeError:
            self._drop()
            return len(text)

    def flush(self) -> None:
        try:
            super().flush()
        except BrokenPipeError:
            self._drop()

    def _drop(self) -> None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), self.fileno())
        if self._ends:
            raise SystemExit(0)


if __name__ == "__main__":
    main()
