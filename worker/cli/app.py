"""The command line ``training-worker``: every module of commands, put together."""

from typing import Annotated

import typer

from worker.cli import completion
from worker.cli.commands import (
    cache,
    capacity,
    captions,
    catalog,
    config,
    dead_letter,
    engines,
    fleet,
    jobs,
    keys,
    results,
    serve,
    tenants,
    unreadable,
    webhooks,
)
from worker.cli.help import ACCESS, FLEET, MAINTENANCE, PROGRAM, Group

EPILOG = """Examples:
  training-worker up
  training-worker submit job.yaml --watch
  training-worker COMMAND --help

Docs: docs/index.md, docs/reference/commands.md"""

cli = typer.Typer(
    name="training-worker",
    cls=Group,
    epilog=EPILOG,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Fine-tune image models on a fleet of GPUs.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # importing Rich takes longer than all other imports of --help
)
for group in (
    jobs.commands,
    fleet.commands,
    keys.audit_commands,
    capacity.commands,
    catalog.commands,
    captions.commands,
    results.commands,
    serve.commands,
    completion.commands,
):
    cli.add_typer(group)
for name, purpose, named_group in (
    ("keys", ACCESS, keys.commands),
    ("tenants", ACCESS, tenants.commands),
    ("webhooks", ACCESS, webhooks.commands),
    ("cache", MAINTENANCE, cache.commands),
    ("dead-letter", MAINTENANCE, dead_letter.commands),
    ("unreadable", MAINTENANCE, unreadable.commands),
    ("engines", FLEET, engines.commands),
    ("config", PROGRAM, config.commands),
):
    cli.add_typer(named_group, name=name, rich_help_panel=purpose)
completion.enable()


def _print_version(value: bool) -> None:
    if value:
        from importlib.metadata import version

        typer.echo(f"training-worker {version('training-worker')}")
        raise typer.Exit


@cli.callback()
def main(
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version and exit.", callback=_print_version, is_eager=True
        ),
    ] = False,
) -> None:
    """Fine-tune image models on a fleet of GPUs."""
