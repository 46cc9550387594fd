"""Commands that print what a job file may hold: presets, options, and the contract's files."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from worker.cli.command import Json, command
from worker.cli.help import JOB_FILES, PROGRAM, Group, about

if TYPE_CHECKING:
    from tasks.settings.settings import Settings

commands = typer.Typer(cls=Group)


@commands.command(
    **about("presets", "presets flux_lora_1x40gb", purpose=JOB_FILES, docs="reference/presets.md")
)
@command
def presets(
    settings: "Settings",
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="NAME", help="The preset to show. Unset: list all.", show_default=False
        ),
    ] = None,
    json: Json = False,
) -> None:
    """List the presets, or show one."""
    from tasks.errors import UsageError
    from tasks.jobs.document import write_document
    from tasks.jobs.presets import UnknownPresetError, preset, preset_names
    from worker.cli.reference import preset_table
    from worker.cli.reports.output import print_json, stdout

    if name is None:
        if json:
            print_json({known: preset(known)["summary"] for known in preset_names()})
        else:
            stdout.print(preset_table())
        return
    try:
        values = preset(name)
    except UnknownPresetError as error:
        raise UsageError(str(error)) from error
    if json:
        print_json(values)
    else:
        stdout.print(write_document(values), end="", soft_wrap=True)


@commands.command(**about("options FLUX_LORA", purpose=JOB_FILES, docs="reference/options.md"))
@command
def options(
    settings: "Settings",
    training_type: Annotated[
        str | None,
        typer.Argument(
            metavar="TYPE", help="The training type. Unset: all types.", show_default=False
        ),
    ] = None,
    form: Annotated[
        Literal["table", "markdown", "json"], typer.Option("--format", help="The output format.")
    ] = "table",
    json: Json = False,
) -> None:
    """List the options of a training type, or of all types."""
    from tasks.errors import UsageError
    from tasks.jobs.options import training_options
    from worker.cli.reference import options_document, options_page, options_table
    from worker.cli.reports.output import print_json, stdout

    known = training_options()
    if training_type is not None:
        if training_type not in known:
            raise UsageError(f"{training_type!r} is not a training type; use {', '.join(known)}")
        known = {training_type: known[training_type]}
    if json or form == "json":
        print_json({name: options_document(type_options) for name, type_options in known.items()})
    elif form == "markdown":
        stdout.file.write(options_page(known.values()))
        stdout.file.flush()
    else:
        for type_options in known.values():
            stdout.print(options_table(type_options))


@commands.command(**about("contract contract/", purpose=PROGRAM, docs="guides/backend.md"))
@command
def contract(
    settings: "Settings",
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="Folder to write to.", show_default=False)
    ],
) -> None:
    """Write the contract for backends: names, schemas, OpenAPI."""
    from tasks.errors import UsageError
    from tasks.process.file_modes import output_files
    from tasks.schemas.contract_files import contract_files
    from worker.cli.reports.output import stdout

    texts = contract_files() | _openapi_file()
    try:
        with output_files():
            folder.mkdir(parents=True, exist_ok=True)
            for name, text in texts.items():
                (folder / name).write_text(text, "utf-8")
                stdout.print(str(folder / name), soft_wrap=True)
    except OSError as error:
        raise UsageError(f"cannot write to {folder}: {error.strerror}") from error


def _openapi_file() -> dict[str, str]:
    """Return the description of the console's API, which the console itself writes."""
    import subprocess
    import sys

    from tasks.extras import is_installed
    from worker.cli.reports.output import stderr

    if not is_installed("fastapi"):
        stderr.print("openapi.json needs the console: pip install 'training-worker[console]'")
        return {}
    command = [sys.executable, "-P", "-m", "console.api"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return {"openapi.json": done.stdout}
