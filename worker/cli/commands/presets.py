"""``training-worker presets``."""

import yaml
from rich.table import Table

from tasks.errors import InvalidJobError, Problem
from tasks.jobs.presets import ALIASES, UnknownPresetError, preset, preset_names
from tasks.settings.settings import Settings
from worker.cli.output import print_json, stdout


def run(settings: Settings, *, name: str | None, json: bool) -> None:
    """List the presets, or show one."""
    if name is None:
        _list(json)
        return
    try:
        values = preset(name)
    except UnknownPresetError as error:
        raise InvalidJobError([Problem("preset", str(error))]) from error
    if json:
        print_json(values)
    else:
        stdout.print(yaml.safe_dump(values, sort_keys=False), markup=False, end="")


def _list(json: bool) -> None:
    names = preset_names()
    if json:
        print_json({name: preset(name)["summary"] for name in names})
        return
    table = Table("preset", "also called", "what it is")
    for name in names:
        also = ", ".join(alias for alias, target in ALIASES.items() if target == name)
        table.add_row(name, also, preset(name)["summary"])
    stdout.print(table)
