"""Flower, the operators' view, on this fleet's broker.

Address, credentials and broker go in by its options object, never by arguments that other users
of the machine could read. Flower's ``/metrics`` is open even with basic auth, so it is on the
loopback address unless an operator says otherwise; a proxy that publishes it must guard that path.

What Flower has seen outlives it in a file of its own, which is a pickle: it lies in a folder that
only its owner can enter.
"""

import importlib
import os
import secrets
from pathlib import Path

from tasks.app import make_app
from tasks.settings.settings import Settings
from worker.kombu_redis.transport import use_for_redis

# What a crash of Flower forgets. Some hundred milliseconds of its time are written each time.
_SAVE_EVERY_MS = 60_000
# With the arguments, which name the job.
_COLUMNS = "name,args,uuid,state,received,started,runtime,worker"


def flower_credentials(settings: Settings) -> str:
    """``user:password``: the configured ones, or those made once for this home."""
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
    """Where the password made for this home is kept."""
    return settings.home_dir / "flower-password"


def flower_address(settings: Settings) -> str:
    """The address of Flower's pages."""
    everywhere = settings.flower_address in ("0.0.0.0", "::")
    host = "127.0.0.1" if everywhere else settings.flower_address
    path = f"/{settings.flower_prefix}/" if settings.flower_prefix else ""
    return f"http://{f'[{host}]' if ':' in host else host}:{settings.flower_port}{path}"


def run_flower(settings: Settings, broker_url: str) -> None:
    """Serve Flower until stopped."""
    folder = settings.home_dir / "flower"
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    # Flower reads its options from the environment of its own process.
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
    )
    if settings.flower_prefix is not None:
        os.environ["FLOWER_URL_PREFIX"] = settings.flower_prefix
    # kombu's own transport would give back messages that it takes for those of lost workers.
    use_for_redis()
    app = make_app(settings, broker_url)
    if settings.console_url or settings.console_port:
        # Imported only here, since Flower may be missing where this module is of use.
        templates = importlib.import_module("worker.local.flower_templates")
        templates.with_link("Console", settings.console_base_url)
    app.start(["flower"])
