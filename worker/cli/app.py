"""The command line ``training-worker``: every module of commands, put together."""

from typing import Annotated

import typer

from worker.cli import (
    cache,
    capacity,
    catalog,
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

cli = typer.Typer(
    name="training-worker",
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
    results.commands,
    serve.commands,
):
    cli.add_typer(group)
cli.add_typer(cache.commands, name="cache")
cli.add_typer(dead_letter.commands, name="dead-letter")
cli.add_typer(engines.commands, name="engines")
cli.add_typer(keys.commands, name="keys")
cli.add_typer(tenants.commands, name="tenants")
cli.add_typer(unreadable.commands, name="unreadable")
cli.add_typer(webhooks.commands, name="webhooks")


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
