"""How help is written: commands by purpose, plain names of arguments, examples, and the docs.

Rich would draw it in boxes; importing it takes longer than all other imports of ``--help``.
"""

import re
from typing import Any

from typer.core import TyperCommand, TyperGroup

START = "Start"
JOBS = "Jobs"
JOB_FILES = "Job files"
FLEET = "Fleet"
CAPACITY = "Capacity"
SERVERS = "Servers"
ACCESS = "Access"
MAINTENANCE = "Maintenance"
PROGRAM = "This program"
PURPOSES = (START, JOBS, JOB_FILES, FLEET, CAPACITY, SERVERS, ACCESS, MAINTENANCE, PROGRAM)
"""The headings of ``training-worker --help``, in its order."""

_LEVEL_OPTIONS = ("-v", "--verbose", "-q", "--quiet")
_OTHERS = "Commands"
# A sentence that is longer than any terminal is wide is wrapped, not cut.
_UNLIMITED = 10_000


def about(
    *examples: str, purpose: str | None = None, docs: str = "reference/commands.md"
) -> dict[str, Any]:
    """Return the arguments of ``typer.Typer.command`` that describe a command.

    Args:
        examples: Command lines, without the program's name.
        purpose: Its heading in ``training-worker --help``; None below a group.
        docs: The page about it, in the folder ``docs``.
    """
    lines = [f"  training-worker {example}" for example in examples]
    epilog = ["Examples:", *lines, "", f"Docs: docs/{docs}"] if lines else [f"Docs: docs/{docs}"]
    return {"cls": Command, "rich_help_panel": purpose, "epilog": "\n".join(epilog)}


class _Help:
    """What commands and groups share."""

    params: list[Any]
    epilog: str | None

    def name_values(self) -> None:
        """Name the value of each option that has no name of its own."""
        for parameter in self.params:
            if parameter.param_type_name == "option" and parameter.metavar is None:
                parameter.metavar = _value_name(parameter)

    def usage_pieces(self, pieces: list[str]) -> list[str]:
        """Return the words of a usage line without typer's braces."""
        return [re.sub(r"\{(.+)\}", r"\1", piece) for piece in pieces]

    def write_parameters(self, context: Any, formatter: Any) -> None:
        """Write arguments and options; an argument's type is in its text."""
        for heading, kind in (("Arguments", "argument"), ("Options", "option")):
            rows = [
                (record[0].partition(" <")[0] if kind == "argument" else record[0], record[1])
                for parameter in self.get_params(context)  # type: ignore[attr-defined]
                if parameter.param_type_name == kind
                and (record := parameter.get_help_record(context)) is not None
            ]
            if rows:
                with formatter.section(heading):
                    formatter.write_dl(rows)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """Write examples as they are; typer would fill them into a paragraph."""
        if self.epilog:
            formatter.write(f"\n{self.epilog}\n")


class Command(_Help, TyperCommand):
    """A command."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.name_values()

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """Return the words of the usage line."""
        return self.usage_pieces(super().collect_usage_pieces(ctx))

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write arguments and options."""
        self.write_parameters(ctx, formatter)


class Group(_Help, TyperGroup):
    """A group of commands, listed by purpose with whole sentences."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.name_values()

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Let ``-v`` and ``-q`` stand before a command's name, too."""
        count = next((i for i, word in enumerate(args) if word not in _LEVEL_OPTIONS), len(args))
        if 0 < count < len(args) and args[count] in self.commands:
            args = [args[count], *args[:count], *args[count + 1 :]]
        return super().parse_args(ctx, args)

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write options and commands."""
        self.write_parameters(ctx, formatter)
        self.format_commands(ctx, formatter)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write the commands by purpose, their sentences in one column."""
        names = self.list_commands(ctx)
        width = max(map(len, names), default=0)
        sections: dict[str, list[tuple[str, str]]] = {}
        for name in names:
            command: Any = self.commands[name]
            panel = command.rich_help_panel
            heading = panel if panel in PURPOSES else _OTHERS
            row = (name.ljust(width), command.get_short_help_str(_UNLIMITED))
            sections.setdefault(heading, []).append(row)
        for heading in (*PURPOSES, _OTHERS):
            if heading in sections:
                with formatter.section(heading):
                    formatter.write_dl(sections[heading])


def _value_name(option: Any) -> str | None:
    """Return the name of an option's value in help: its choices, ``N``, or the option's name."""
    kind = option.type_descriptor
    if option.is_flag or option.count:
        return None
    if kind.is_choice:
        return "|".join(map(str, kind.choices))
    if kind.is_ranged or option.bare_type() in ("int", "float"):
        return "N"
    if kind.is_path:
        return "PATH"
    name: str = max(option.opts, key=len).lstrip("-")
    return name.upper()
