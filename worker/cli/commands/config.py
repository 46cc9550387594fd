"""The command that shows the settings, and where each comes from."""

from typing import TYPE_CHECKING

import typer

from worker.cli.command import Json, command
from worker.cli.help import Group, about

if TYPE_CHECKING:
    from tasks.settings.settings import Settings

commands = typer.Typer(cls=Group, help="Show the settings of this machine.", no_args_is_help=True)


@commands.command(**about("config show", "config show --json", docs="reference/settings.md"))
@command
def show(settings: "Settings", json: Json = False) -> None:
    """Show each setting: its value, and whether the environment or a file has set it.

    Secrets are hidden.
    """
    from dataclasses import asdict

    from tasks.settings.sources import setting_sources
    from worker.cli.reports.output import FoldedTable, print_json, stdout

    listed = setting_sources(settings)
    if json:
        print_json([asdict(setting) for setting in listed])
        return
    table = FoldedTable("setting", "value", "from")
    for setting in listed:
        value = "unset" if setting.value is None else setting.value
        table.add_row(setting.name, value, setting.source)
    stdout.print(table)
