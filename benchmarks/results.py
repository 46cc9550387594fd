"""The file of results, with one section per benchmark that each run replaces.

Knows the form of a section, and nothing about the measurements.
"""

import argparse
import os
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path


def parser_of(doc: str | None) -> argparse.ArgumentParser:
    """Return a parser for a benchmark's command line, with the options that all share."""
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--report", type=Path, help="write the result into this Markdown file")
    return parser


def report_result(
    report: Path | None, title: str, command: str, goal: str, lines: Iterable[str]
) -> None:
    """Print a result, and write it into the file of results if one is given.

    Args:
        report: The file.
        title: Title of the section.
        command: Command that repeats the measurement.
        goal: The expected result.
        lines: The measurements.
    """
    points = [*lines, f"Goal: {goal}"]
    print(*points, sep="\n", flush=True)
    if report:
        made = f"`{command}`, {datetime.now(UTC):%Y-%m-%d}, {os.cpu_count()} cores."
        section = [f"## {title}", "", made, "", *(f"- {point}" for point in points)]
        write_section(report, title.lower(), "\n".join(section) + "\n")


def write_section(path: Path, name: str, section: str) -> None:
    """Replace the section of this name in a file of results."""
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    text = path.read_text("utf-8") if path.exists() else "# Results\n"
    if begin not in text:
        text = f"{text}\n{begin}\n{end}\n"
    before, rest = text.split(begin)
    path.write_text(f"{before}{begin}\n{section}{end}{rest.split(end)[1]}", "utf-8")
