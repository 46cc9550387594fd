"""What the trainer does on this machine's GPU: its memory, speed, repeatability and errors.

    python -P -m benchmarks.gpu_check FOLDER [--parts NAME ...] [--report benchmarks/RESULTS.md]

Runs each part in a process of its own, with its own time limit, and writes each row into
FOLDER/results.jsonl as it comes: a part that hangs or crashes costs only itself. FLUX and SDXL have
their real size and random weights; FOLDER takes 40 GB, best in memory (/dev/shm). It ends within 8
minutes; parts that have not begun by then are not run. ``--device cpu --size tiny`` tries the check
itself anywhere. Exit code 1: a part failed, or a row is not ok.
"""

import argparse
import json
import platform
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.results import write_section
from worker.supervision.process import kill_group, spawn
from worker.trainer.environment import set_up

PARTS = {
    "ceilings": 40,
    "models": 60,
    "peaks": 90,
    "repeat": 70,
    "quantized": 60,
    "fleet": 120,
    "speed": 170,
    "kernels": 50,
    "out_of_memory": 60,
}
"""The parts, the most important ones first, and the seconds that each may take."""
# What is left of 8 minutes for starting and writing.
_TOTAL_S = 465.0
Row = dict[str, Any]


def main() -> int:
    """Run the parts, print and write their rows.

    Returns:
        An exit code.
    """
    arguments = _arguments()
    if arguments.run_part:
        return _run_part(arguments)
    arguments.folder.mkdir(parents=True, exist_ok=True)
    deadline, rows = time.monotonic() + _TOTAL_S, []
    with (arguments.folder / "results.jsonl").open("a", encoding="utf-8") as results:
        for name in arguments.parts or PARTS:
            for row in _rows_of(name, min(PARTS[name], deadline - time.monotonic())):
                rows.append(row)
                print(json.dumps(row), flush=True)
                print(json.dumps(row), file=results, flush=True)
            if arguments.report:
                write_section(arguments.report, "gpu check", _section(rows))
    return int(not all(row.get("ok", True) for row in rows))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--size", choices=["real", "tiny"], default="real")
    parser.add_argument("--parts", nargs="+", choices=PARTS, metavar="NAME", help="unset: all")
    parser.add_argument("--report", type=Path, help="write the tables into this Markdown file")
    parser.add_argument("--run-part", choices=PARTS, help=argparse.SUPPRESS)
    return parser.parse_args()


def _rows_of(name: str, limit_s: float) -> Iterator[Row]:
    """Run a part in a process; yield its rows, and at last how it ended."""
    if limit_s <= 0:
        yield {"part": name, "ended": "was not run for want of time", "seconds": 0, "ok": False}
        return
    began = time.monotonic()
    process = spawn(command_of(name), stdout=subprocess.PIPE)
    timer = threading.Timer(limit_s, kill_group, [process])
    timer.start()
    assert process.stdout is not None
    with process.stdout as output:
        for line in output:
            yield {"part": name, **json.loads(line)}
    code = process.wait()
    timer.cancel()
    # A part may leave processes of its own behind.
    kill_group(process)
    seconds = time.monotonic() - began
    ended = "ended" if code == 0 else f"failed ({code})"
    if seconds >= limit_s:
        ended = f"was killed after its {limit_s:.0f} s"
    yield {"part": name, "ended": ended, "seconds": round(seconds, 1), "ok": code == 0}


def command_of(name: str) -> list[str]:
    """Return the command of a part's process."""
    own = [sys.executable, "-P", "-m", "benchmarks.gpu_check"]
    return [*own, *sys.argv[1:], "--run-part", name]


def _run_part(arguments: argparse.Namespace) -> int:
    """Run a part in this process."""
    # Before the libraries are imported, as in a trainer.
    set_up()
    from benchmarks import gpu_parts

    check = gpu_parts.Check(arguments.folder.absolute(), arguments.device, arguments.size)
    for row in getattr(gpu_parts, arguments.run_part)(check):
        print(json.dumps(row), flush=True)
    return 0


def _section(rows: list[Row]) -> str:
    """Return the rows as Markdown, a table for each part."""
    command = "python -P -m benchmarks.gpu_check FOLDER"
    lines = ["## GPU check", "", f"`{command}`, {datetime.now(UTC):%Y-%m-%d}, {platform.node()}."]
    for name in dict.fromkeys(row["part"] for row in rows):
        of_part = [row for row in rows if row["part"] == name and "ended" not in row]
        columns = list(dict.fromkeys(key for row in of_part for key in row if key != "part"))
        lines += ["", f"### {name}", ""]
        if columns:
            lines += [_line(columns), _line(["---"] * len(columns))]
        lines += [_line([row.get(column, "") for column in columns]) for row in of_part]
        ends = [row for row in rows if row["part"] == name and "ended" in row]
        lines += ["", *(f"The part {row['ended']}; {row['seconds']} s." for row in ends)]
    return "\n".join(lines) + "\n"


def _line(cells: list[Any]) -> str:
    words = {True: "yes", False: "no", None: ""}
    return f"| {' | '.join(words[c] if isinstance(c, bool | None) else str(c) for c in cells)} |"


if __name__ == "__main__":
    sys.exit(main())
