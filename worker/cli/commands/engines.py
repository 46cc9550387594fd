"""Commands on training engines: what this machine has, and the installation of invoke-training."""

from typing import TYPE_CHECKING, Annotated

import typer

from worker.cli.command import Json, Quiet, Verbose, command
from worker.cli.help import Group, about

if TYPE_CHECKING:
    from tasks.settings.settings import Settings

commands = typer.Typer(
    cls=Group,
    invoke_without_command=True,
    epilog=about("engines", docs="guides/invoke-training.md")["epilog"],
)


@commands.callback()
def engines(
    context: typer.Context, json: Json = False, verbose: Verbose = False, quiet: Quiet = False
) -> None:
    """Show this machine's engines: versions, limits, patches."""
    if context.invoked_subcommand is None:
        _show(json=json, verbose=verbose, quiet=quiet)


@commands.command(
    **about(
        "engines install",
        "engines install --from ~/invoke-training",
        docs="guides/invoke-training.md",
    )
)
@command
def install(
    settings: "Settings",
    source: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="CHECKOUT",
            help="A checkout of the library, or its git address. Unset: GitHub's.",
        ),
    ] = None,
) -> None:
    """Install engine invoke-training.

    It gets its own environment in TRAINING_HOME/engines, which workers find. The same command
    resumes an interrupted installation.
    """
    from worker.cli.reports.output import stdout
    from worker.local.engine_install import LIBRARY, install_invoke

    python = install_invoke(
        settings.home_dir,
        source or LIBRARY,
        lambda step: stdout.print(f"invoke-training: {step}", soft_wrap=True),
    )
    stdout.print(f"installed: {python}", soft_wrap=True)
    if settings.invoke_python not in (None, python):
        stdout.print(f"TRAINING_INVOKE_PYTHON takes precedence: {settings.invoke_python}")
    stdout.print("restart this machine's workers, which check for engines when they start")


@command
def _show(settings: "Settings", json: Json = False) -> None:
    from tasks.jobs.invoke import parse_patches
    from worker.cli.reports.fleet_tables import engine_document, engine_tables
    from worker.cli.reports.output import print_json, stdout
    from worker.supervision.engines import find_engines

    found, applied = find_engines(settings), parse_patches(settings.invoke_patches)
    if json:
        print_json([engine_document(name, engine, applied) for name, engine in found.items()])
        return
    for table in engine_tables(found, applied):
        stdout.print(table)
