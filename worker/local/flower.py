"""Flower, the operators' view of tasks, on this fleet's broker.

Address, credentials and broker are passed in the environment of Flower's own process, never as
arguments, which other users of the machine can read. Flower's ``/metrics`` requires no password
even with basic auth, so it is on the loopback address by default; a proxy that publishes it must
guard that path.

Flower keeps its state in a pickle, in a folder that only its owner can enter.
"""

import os
import secrets
from pathlib import Path

from tasks.app import make_app
from tasks.process.signals import drain_on_hangup
from tasks.settings.settings import Settings
from tasks.state.connection import connect
from worker.kombu_redis.transport import use_for_redis

# The state that a crash of Flower loses. Saving takes some hundred milliseconds.
_SAVE_EVERY_MS = 60_000
# The arguments are a column because they name the job.
_COLUMNS = "name,args,uuid,state,received,started,runtime,worker"


def flower_credentials(settings: Settings) -> str:
    """Return ``user:password``: the configured ones, or those generated once for this home."""
    if settings.flower_basic_auth is not None:
        return settings.flower_basic_auth.get_secret_value()
    path = password_file(settings)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return f"operator:{path.read_text('utf-8').strip()}"
    password = secrets.token_urlsafe(18)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(password + "\n")
    return f"operator:{password}"


def password_file(settings: Settings) -> Path:
    """Return the file of the password that was generated for this home."""
    return settings.home_dir / "flower-password"


def flower_address(settings: Settings) -> str:
    """Return the address of Flower's pages, on this machine."""
    is_wildcard = settings.flower_address in ("0.0.0.0", "::")
    host = "127.0.0.1" if is_wildcard else settings.flower_address
    path = f"/{settings.flower_prefix}/" if settings.flower_prefix else ""
    return f"http://{f'[{host}]' if ':' in host else host}:{settings.flower_port}{path}"


def run_flower(settings: Settings, broker_url: str) -> None:
    """Serve Flower until it is stopped."""
    from worker.local.flower_pages import extend_flower  # an extra

    folder = settings.home_dir / "flower"
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    os.environ.update(
        FLOWER_ADDRESS=settings.flower_address,
        FLOWER_PORT=str(settings.flower_port),
        FLOWER_BASIC_AUTH=flower_credentials(settings),
        FLOWER_MAX_TASKS="10000",
        FLOWER_PURGE_OFFLINE_WORKERS="300",
        FLOWER_PERSISTENT="true",
        FLOWER_DB=str(folder / "state"),
        FLOWER_STATE_SAVE_INTERVAL=str(_SAVE_EVERY_MS),
        FLOWER_TASKS_COLUMNS=_COLUMNS,
        # Tornado would set the level itself, to info.
        FLOWER_LOGGING="none",
        FLOWER_READ_ONLY=str(settings.flower_read_only).lower(),
    )
    if settings.flower_prefix is not None:
        os.environ["FLOWER_URL_PREFIX"] = settings.flower_prefix
    # kombu's own transport would return messages that it takes for those of lost workers.
    use_for_redis()
    app = make_app(settings, broker_url)
    # Flower's broker page is asynchronous and brings its own kind of retries.
    app.conf.broker_transport_options.get("sentinel_kwargs", {}).pop("retry", None)
    has_console = settings.console_url or settings.console_port
    extend_flower(
        connect(broker_url),
        settings.console_base_url if has_console else None,
        {*settings.host_names, settings.flower_address},
    )
    drain_on_hangup()
    # Quiet: its banner lists Celery's own tasks.
    app.start(["--quiet", "flower"])
