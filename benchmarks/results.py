"""The file of results: one section a benchmark, each written anew by its own run.

Knows what a section looks like and where it goes, and nothing of what is measured.
"""

import argparse
import os
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path


def parser_of(doc: str | None) -> argparse.ArgumentParser:
    """A benchmark's command line, with the option that every one has."""
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--report", type=Path, help="a Markdown file to write the result into")
    return parser


def tell(report: Path | None, title: str, command: str, goal: str, lines: Iterable[str]) -> None:
    """Print a result, and write it into the file of results where there is one.

    Args:
        report: The file.
        title: The section's.
        command: How to measure it again.
        goal: What was to be reached.
        lines: What was measured.
    """
    points = [*lines, f"Goal: {goal}"]
    print(*points, sep="\n", flush=True)
    if report:
        made = f"`{command}`, {datetime.now(UTC):%Y-%m-%d}, {os.cpu_count()} cores."
        section = [f"## {title}", "", made, "", *(f"- {it}" for it in points)]
        write_section(report, title.lower(), "\n".join(section) + "\n")


def write_section(path: Path, name: str, section: str) -> None:
    """Put a section into a file of results, in place of the one of this name."""
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    text = path.read_text("utf-8") if path.exists() else "# Results\n"
    if begin not in text:
        text = f"{text}\n{begin}\n{end}\n"
    before, rest = text.split(begin)
    path.write_text(f"{before}{begin}\n{section}{end}{rest.split(end)[1]}", "utf-8")
