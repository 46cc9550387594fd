"""``training-worker doctor``."""

from dataclasses import asdict

from rich.markup import escape
from rich.table import Table

from tasks.settings.settings import Settings
from worker.cli.output import print_json, stdout
from worker.maintenance.doctor import check_all

_STYLES = {"ok": "green", "warning": "yellow", "fault": "red"}


def run(settings: Settings, *, json: bool) -> int:
    """Look at everything that jobs need, as seen from this machine.

    Returns:
        The exit code: 1 where there is a fault.
    """
    findings = check_all(settings)
    if json:
        print_json([asdict(finding) for finding in findings])
    else:
        table = Table("", "what", "found", "what to do")
        for it in findings:
            level = f"[{_STYLES[it.level]}]{it.level}[/]"
            table.add_row(level, it.what, escape(it.found), escape(it.remedy))
        stdout.print(table)
    return int(any(finding.level == "fault" for finding in findings))
