import io
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from worker.local.log_files import LogFiles

MAX_BYTES = 1000


def copied(logs: LogFiles, name: str, text: bytes) -> None:
    logs.copy(name, io.BytesIO(text))


def test_each_process_has_its_file_besides_the_terminal(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    logs = LogFiles(tmp_path / "logs", MAX_BYTES)
    copied(logs, "cpu", b"prepare begins\n")
    copied(logs, "console", b"\xff is no text\nand no end of a line")
    logs.close()
    files = {path.name: path.read_text("utf-8") for path in (tmp_path / "logs").iterdir()}
    assert files == {
        "cpu.log": "prepare begins\n",
        "console.log": "\\xff is no text\nand no end of a line\n",
    }
    assert "prepare begins\n" in capfd.readouterr().err


def test_files_are_bounded_and_the_newest_kept(tmp_path: Path) -> None:
    logs = LogFiles(tmp_path, MAX_BYTES)
    copied(logs, "cpu", b"".join(b"line %04d\n" % number for number in range(2000)))
    logs.close()
    files = sorted(tmp_path.iterdir())
    assert [path.name for path in files] == [
        "cpu.log",
        *(f"cpu.log.{number}" for number in range(1, 5)),
    ]
    assert all(path.stat().st_size <= MAX_BYTES for path in files)
    assert "line 1999\n" in files[0].read_text("utf-8")


def test_a_line_without_end_is_split(tmp_path: Path) -> None:
    logs = LogFiles(tmp_path, 10**6)
    copied(logs, "cpu", b"x" * 200_000)
    logs.close()
    lines = (tmp_path / "cpu.log").read_text("utf-8").splitlines()
    assert len("".join(lines)) == 200_000
    assert max(map(len, lines)) <= 65_536


def test_no_file_is_written_with_size_0(tmp_path: Path) -> None:
    logs = LogFiles(tmp_path / "logs", 0)
    logs.add_own("up")
    copied(logs, "cpu", b"prepare begins\n")
    logs.close()
    assert not (tmp_path / "logs").exists()


def test_a_file_that_cannot_be_written_is_reported_once(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "logs").write_text("a file, no folder", "utf-8")
    logs = LogFiles(tmp_path / "logs", MAX_BYTES)
    copied(logs, "cpu", b"first\nsecond\n")
    logs.close()
    [warning] = caplog.messages
    assert warning.startswith(f"cannot write {tmp_path / 'logs' / 'cpu.log'}")
    assert "first\nsecond\n" in capfd.readouterr().err


def test_a_closed_terminal_stops_no_process(tmp_path: Path) -> None:
    program = (
        "import subprocess, sys\n"
        "from pathlib import Path\n"
        "from worker.local.log_files import LogFiles\n"
        "lines = 'import sys; [print(n, file=sys.stderr) for n in range(20_000)]'\n"
        "child = subprocess.Popen([sys.executable, '-c', lines], stderr=subprocess.PIPE)\n"
        "logs = LogFiles(Path(sys.argv[1]), 10**7)\n"
        "logs.copy('child', child.stderr)\n"
        "print(child.wait(), flush=True)\n"
        "logs.close()\n"
    )
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as terminal:
        done = subprocess.run(
            [sys.executable, "-P", "-c", program, str(tmp_path)],
            stdout=subprocess.PIPE,
            stderr=terminal,
            text=True,
            timeout=50,
        )
    assert done.stdout == "0\n"
    assert (tmp_path / "child.log").read_text("utf-8").endswith("19999\n")


def test_own_log_has_a_file_until_it_is_closed(tmp_path: Path) -> None:
    logs = LogFiles(tmp_path, MAX_BYTES)
    logs.add_own("up")
    logging.getLogger("worker.local").warning("the broker ended")
    logs.close()
    logging.getLogger("worker.local").warning("after the end")
    text = (tmp_path / "up.log").read_text("utf-8")
    assert "the broker ended" in text
    assert "after the end" not in text
