"""``training-worker options``."""

from collections.abc import Iterable
from dataclasses import asdict

from rich.markup import escape
from rich.table import Table

from tasks.errors import InvalidJobError, Problem
from tasks.jobs.options import Option, TypeOptions, training_options
from tasks.settings.settings import Settings
from worker.cli.output import print_json, stdout

COMMAND = "training-worker options --format markdown"
"""What makes ``docs/reference/options.md``."""


def run(settings: Settings, *, training_type: str | None, form: str) -> None:
    """Show every option of a training type, or of all."""
    known = training_options()
    if training_type is not None:
        if training_type not in known:
            there_are = ", ".join(known)
            problem = f"{training_type!r} is no training type; the types are {there_are}"
            raise InvalidJobError([Problem("type", problem)])
        known = {training_type: known[training_type]}
    if form == "json":
        print_json({name: _document(options) for name, options in known.items()})
    elif form == "markdown":
        stdout.file.write(markdown(known.values()))
        stdout.file.flush()
    else:
        for options in known.values():
            stdout.print(_table(options))


def markdown(types: Iterable[TypeOptions]) -> str:
    """The options of these types as one page."""
    lines = [
        "# Options",
        "",
        "What `training` takes, by its `type`. Made from the models that jobs are checked against,",
        f"by `{COMMAND}`; do not edit it.",
    ]
    for options in types:
        lines += ["", f"## {options.name}", "", options.description]
        for only_with, group in _groups(options.options):
            if only_with:
                lines += ["", f"With {_selectors(only_with, '`')}:"]
            lines += ["", "| option | type | default | what it does |", "| --- | --- | --- | --- |"]
            for option in group:
                default = "required" if option.default is None else f"`{option.default}`"
                cells = (f"`{option.path}`", option.type, default, _code(option.description))
                lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def _document(options: TypeOptions) -> dict[str, object]:
    listed = [
        {k: v for k, v in asdict(option).items() if k != "schema"}
        | {"required": option.default is None}
        for option in options.options
    ]
    return {"description": options.description, "options": listed}


def _table(options: TypeOptions) -> Table:
    table = Table(title=f"{options.name}: {options.description}", expand=True)
    for heading, share in (("option", 3), ("type", 3), ("default", 2), ("what it does", 5)):
        table.add_column(heading, ratio=share, overflow="fold")
    for only_with, group in _groups(options.options):
        if only_with:
            table.add_section()
            table.add_row("", "", "", f"with {escape(_selectors(only_with, ''))}", style="bold")
        for option in group:
            default = "required" if option.default is None else option.default
            cells = (option.path, option.type, default, option.description.replace("``", ""))
            table.add_row(*map(escape, cells))
    return table


def _groups(options: Iterable[Option]) -> list[tuple[dict[str, str], list[Option]]]:
    """Options by what selects them: those of every job first, each group in one place."""
    groups: dict[tuple[tuple[str, str], ...], list[Option]] = {}
    for option in options:
        groups.setdefault(tuple(option.only_with.items()), []).append(option)
    return [(dict(only_with), group) for only_with, group in groups.items()]


def _selectors(only_with: dict[str, str], mark: str) -> str:
    return " and ".join(f"{mark}{path}: {value}{mark}" for path, value in only_with.items())


def _code(description: str) -> str:
    return description.replace("``", "`")
