"""Commands on unreadable messages, which were set aside because no worker can process them."""

from typing import TYPE_CHECKING

import typer

from worker.cli.command import Json, command
from worker.cli.help import Group, about

if TYPE_CHECKING:
    from tasks.settings.settings import Settings
    from worker.kombu_redis.unreadable import UnreadableMessages

commands = typer.Typer(
    cls=Group,
    help="Manage messages that no worker can process.",
    no_args_is_help=True,
)


@commands.command("list", **about("unreadable list", docs="runbook/TrainingUnreadableMessages.md"))
@command
def list_messages(settings: "Settings", json: Json = False) -> None:
    """List the newest hundred, the newest first.

    With --json, each has the beginning of its text, which may hold signed URLs.
    """
    from dataclasses import asdict

    from worker.cli.reports.fleet_tables import unreadable_table
    from worker.cli.reports.output import print_json, print_table

    messages = list(_messages(settings))
    if json:
        print_json([asdict(message) for message in messages])
    else:
        print_table(unreadable_table(messages), "no message is set aside")


@commands.command(**about("unreadable discard", docs="runbook/TrainingUnreadableMessages.md"))
@command
def discard(settings: "Settings", json: Json = False) -> None:
    """Delete all of them."""
    from worker.cli.reports.output import print_json, stdout

    count = _messages(settings).discard()
    if json:
        print_json({"discarded": count})
    else:
        stdout.print(f"{count} messages are discarded", markup=False)


def _messages(settings: "Settings") -> "UnreadableMessages":
    from tasks.state.connection import connect
    from worker.local.embedded_broker import broker_url
    from worker.message_guard import unreadable_messages

    return unreadable_messages(connect(broker_url(settings)), settings.job_ttl)
