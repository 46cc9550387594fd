"""``training-worker flower``."""

from importlib.util import find_spec

from tasks.errors import NotInstalledError
from tasks.logging_setup import set_up_logging
from tasks.settings.settings import Settings
from worker.cli.client import broker_url
from worker.local.flower import run_flower


def run(settings: Settings) -> None:
    """Run Flower until it is stopped."""
    if find_spec("flower") is None:
        raise NotInstalledError("Flower", "console")
    set_up_logging(settings.log_format, "flower")
    run_flower(settings, broker_url(settings))
