"""``training-worker health``."""

from pathlib import Path

from tasks.settings.settings import Settings
from worker.lifecycle.health import check_health


def run(settings: Settings, *, ready_file: Path) -> None:
    """End with 0 where the worker of this file is ready and well."""
    check_health(ready_file, settings.visibility_timeout)
