"""``training-worker up``."""

import logging
from importlib.util import find_spec
from pathlib import Path

from tasks.api_keys import ApiKeys, ensure_console_key
from tasks.errors import NotInstalledError
from tasks.logging_setup import set_up_logging
from tasks.settings.settings import Settings
from worker.cli.commands.metrics import metrics_address
from worker.cli.output import stdout
from worker.local.flower import flower_address, flower_credentials, password_file
from worker.local.local_fleet import running_fleet

logger = logging.getLogger(__name__)


def run(settings: Settings, *, ready_file: Path | None) -> None:
    """Start a fleet on this machine and keep it running until it is stopped."""
    set_up_logging(settings.log_format, "up")
    if settings.flower_port and find_spec("flower") is None:
        logger.warning("%s", NotInstalledError("Flower", "console"))
        settings = settings.model_copy(update={"flower_port": 0})
    if settings.metrics_port and find_spec("prometheus_client") is None:
        logger.warning("%s", NotInstalledError("prometheus-client", "console"))
        settings = settings.model_copy(update={"metrics_port": 0})
    if settings.flower_port:
        flower_credentials(settings)
    if settings.console_port and find_spec("fastapi") is None:
        logger.warning("%s", NotInstalledError("the web console", "console"))
        settings = settings.model_copy(update={"console_port": 0})
    if settings.console_port:
        ensure_console_key(ApiKeys(settings.api_keys_file), settings.console_key_file)
    with running_fleet(settings) as fleet:
        fleet.wait_until_ready()
        stdout.print(_introduction(settings, [gpu.name for gpu in fleet.gpus]), soft_wrap=True)
        if ready_file is not None:
            ready_file.touch()
        fleet.run()


def _introduction(settings: Settings, gpus: list[str]) -> str:
    lines = [f"ready: a CPU worker and {len(gpus)} GPU worker(s): {', '.join(gpus)}"]
    lines.append(f"store:  {settings.resolved_store_url}")
    if settings.flower_port:
        auth = (
            "TRAINING_FLOWER_BASIC_AUTH"
            if settings.flower_basic_auth
            else f"user operator, password in {password_file(settings)}"
        )
        lines.append(f"flower: {flower_address(settings)} ({auth})")
    if settings.metrics_port:
        lines.append(f"metrics: {metrics_address(settings)}")
    if settings.console_port:
        lines.append(f"console: {settings.console_base_url} (key in {settings.console_key_file})")
    lines.append("submit: training-worker submit JOB.yaml --watch")
    return "\n".join(lines)
