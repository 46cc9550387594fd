"""``training-worker console``."""

import os
import sys
from importlib.util import find_spec

from tasks.data.read_policy import ANYWHERE
from tasks.errors import NotInstalledError
from tasks.settings.settings import Settings
from worker.cli.client import broker_url


def run(settings: Settings) -> None:
    """Become the web console of the configured fleet, or of this home's.

    Raises:
        NotInstalledError: What it needs is not installed.
        NoBrokerError: There is no fleet.
    """
    if find_spec("fastapi") is None:
        raise NotInstalledError("the web console", "console")
    env, url = dict(os.environ), broker_url(settings)
    if settings.broker_url is None:
        # As on the fleet that 'up' started here.
        env["TRAINING_BROKER_URL"] = url
        env["TRAINING_DATA_ROOTS"] = settings.data_roots or ANYWHERE
    os.execve(sys.executable, [sys.executable, "-P", "-m", "console"], env)
