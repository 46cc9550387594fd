"""Shell completion: its scripts, and the names that it offers.

Names come from the fleet, if it answers at once; a slow or missing broker offers none.
"""

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from typer.completion import get_completion_inspect_parameters, shell_complete
from typer.main import get_command

from worker.cli.help import PROGRAM, about

if TYPE_CHECKING:
    from redis import Redis

commands = typer.Typer()

_VARIABLE = "_TRAINING_WORKER_COMPLETE"
# A person waits for it at each press of the key.
_ANSWER_WITHIN_S = 1.5
_MAX_JOBS = 50

Offer = list[tuple[str, str]]
"""Words, each with a text about it."""


def enable() -> None:
    """Let the shells' scripts ask this program; typer does so only with options of its own."""
    get_completion_inspect_parameters()


@commands.command(
    **about(
        "completion bash > ~/.local/share/bash-completion/completions/training-worker",
        "completion zsh > ~/.zfunc/_training-worker",
        "completion fish > ~/.config/fish/completions/training-worker.fish",
        purpose=PROGRAM,
        docs="guides/install.md",
    )
)
def completion(
    shell: Annotated[
        Literal["bash", "zsh", "fish"],
        typer.Argument(metavar="bash|zsh|fish", help="The shell.", show_default=False),
    ],
) -> None:
    """Print the script that completes commands, options, jobs and workers in a shell."""
    from worker.cli.app import cli

    command = get_command(cli)
    raise typer.Exit(shell_complete(command, {}, "training-worker", _VARIABLE, f"source_{shell}"))


def job_ids(incomplete: str) -> Offer:
    """Return the newest jobs whose ids begin so."""
    from tasks.state.job_reader import JobReader

    def read(client: "Redis") -> Offer:
        jobs = JobReader(client).newest(_MAX_JOBS)
        return [(job.id, f"{job.job.name}, {job.status}") for job in jobs]

    return [offer for offer in _read_in_time(read) if offer[0].startswith(incomplete)]


def worker_names(incomplete: str) -> Offer:
    """Return the live workers whose names begin so."""
    from tasks.state.workers import live_workers

    def read(client: "Redis") -> Offer:
        return [(name, ", ".join(it.queues)) for name, it in live_workers(client).items()]

    return [offer for offer in _read_in_time(read) if offer[0].startswith(incomplete)]


def _read_in_time(read: "Callable[[Redis], Offer]") -> Offer:
    """Ask the broker; return nothing if there is none, or if it takes too long.

    Nothing is printed: that would appear in the line that is being typed.
    """
    from redis import RedisError

    from tasks.errors import JobError
    from tasks.settings.settings import load_settings
    from tasks.state.connection import connect
    from worker.local.embedded_broker import broker_url

    found: Offer = []

    def ask() -> None:
        try:
            found.extend(read(connect(broker_url(load_settings()))))
        except (JobError, RedisError, OSError, ValueError):
            return

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(_ANSWER_WITHIN_S)
    return list(found)
