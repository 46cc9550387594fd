"""Fleets on this machine: the one of ``up``, and the emulated one of ``demo``."""

import logging
import os
import subprocess
import sys
import time
from pathlib import Path

from routing.classes import MemoryClass
from tasks.access.api_keys import ensure_console_key
from tasks.access.key_changes import KeyChanges
from tasks.errors import JobError
from tasks.extras import is_installed, not_installed, require
from tasks.process.logging_setup import set_up_logging
from tasks.settings.settings import Settings
from tasks.state.audit import command_line_actor
from tasks.state.availability import check_writes
from tasks.state.broker_url import BrokerUrl
from tasks.state.connection import connect
from worker.cli.client import client_of
from worker.cli.commands.serve import metrics_address
from worker.cli.reports.follow import follow
from worker.cli.reports.job_report import published_of, show_published
from worker.cli.reports.job_tables import stage_table
from worker.cli.reports.output import stdout
from worker.local.demo import prepare_demo
from worker.local.embedded_broker import broker_url, check_home_is_free
from worker.local.flower import flower_address, flower_credentials, password_file
from worker.local.local_fleet import PARTS, Fleet, running_fleet
from worker.local.login_link import new_login_link
from worker.local.ports import check_ports
from worker.local.sample_sheet import write_sample_sheet
from worker.supervision.process import spawn, stop

logger = logging.getLogger(__name__)

_READY_WITHIN_S = 90.0
# FLUX needs the first; the second shows that FLUX stages never run on a smaller GPU.
_DEMO_GPUS = (MemoryClass.GB40, MemoryClass.GB24)
_EMULATED = (
    "note: an emulated GPU computes on the CPU: a tiny model trains in minutes, a real base model "
    "would take days"
)
# What 'up' starts if its library is installed: the setting of its port, and the module.
_OPTIONAL_PARTS = (
    ("flower_port", "flower"),
    ("metrics_port", "prometheus_client"),
    ("console_port", "fastapi"),
)


def run_local_fleet(settings: Settings, ready_file: Path | None) -> None:
    """Start a fleet on this machine and keep it running until it is stopped.

    Args:
        settings: This process's settings.
        ready_file: Is created once all workers are ready.
    """
    set_up_logging(settings.log_format, "up", settings.log_level)
    settings = _without_missing_parts(settings)
    if settings.broker_url is not None:
        # Its workers would wait for it; the person at this terminal gets an error.
        check_writes(connect(broker_url(settings)))
    else:
        check_home_is_free(settings.home_dir)
    check_ports(settings, PARTS)
    if settings.flower_port:
        flower_credentials(settings)
    if settings.console_port:
        api_keys = KeyChanges(settings.api_keys_file).api_keys(command_line_actor())
        ensure_console_key(api_keys, settings.console_key_file)
    with running_fleet(settings) as fleet:
        fleet.wait_until_ready()
        stdout.print(_introduction(settings, fleet), soft_wrap=True)
        if ready_file is not None:
            ready_file.touch()
        fleet.run()


def run_demo(settings: Settings, home: Path | None) -> None:
    """Run a whole FLUX LoRA job with the miniature FLUX on an emulated fleet.

    Args:
        settings: This process's settings; Flower's are used.
        home: The demo's folder; None is ``demo`` in this machine's home.
    """
    require("torch")
    home = (home or settings.home_dir / "demo").absolute()
    home.mkdir(parents=True, exist_ok=True)
    settings = Settings(
        home=home,
        broker_url=None,
        store_url=None,
        scratch_dir=None,
        gpus=",".join(str(memory_class) for memory_class in _DEMO_GPUS),
        flower_port=settings.flower_port,
        flower_basic_auth=settings.flower_basic_auth,
    )
    stdout.print(
        "a LoRA teaches a miniature FLUX a shape that it does not know: preparing 28 images"
    )
    document = prepare_demo(home)
    fleet = _start_demo_fleet(settings)
    try:
        stdout.print("fleet: an emulated 40 GB worker, a 24 GB one, and a CPU worker")
        if settings.flower_port:
            flower_credentials(settings)
            stdout.print(f"flower: {flower_address(settings)}, user operator, password in", end=" ")
            stdout.print(password_file(settings), soft_wrap=True)
        client = client_of(settings)
        job_id = client.submit(document)
        stdout.print(f"job {job_id}: {home / 'job.yaml'}", soft_wrap=True)
        record = follow(client, job_id, as_json=False)
        on_24gb = sum(s.worker.startswith("gpu-24gb") for s in record.stages.values())
        stdout.print(f"stages of this FLUX job on the 24 GB worker: {on_24gb}")
        stdout.print(stage_table(record))
        show_published(record)
        samples, sheet = Path(published_of(record)).parent / "validation", home / "samples.png"
        if samples.is_dir():
            write_sample_sheet(samples, sheet)
            stdout.print(f"samples of all steps: {sheet}", soft_wrap=True)
    finally:
        stop(fleet, grace_s=settings.shutdown_timeout.total_seconds())


def _without_missing_parts(settings: Settings) -> Settings:
    """Turn off the parts of a fleet whose library is not installed, each with a warning."""
    for port, module in _OPTIONAL_PARTS:
        if getattr(settings, port) and not is_installed(module):
            logger.warning("%s", not_installed(module))
            settings = settings.model_copy(update={port: 0})
    return settings


def _introduction(settings: Settings, fleet: Fleet) -> str:
    """Return what the fleet has and where, and how to go on."""
    gpus = ", ".join(gpu.name for gpu in fleet.gpus)
    lines = [f"ready: a CPU worker and {len(fleet.gpus)} GPU worker(s): {gpus}"]
    if any(gpu.emulated for gpu in fleet.gpus):
        lines.append(_EMULATED)
    lines.append(f"broker: {BrokerUrl.parse(fleet.broker_url).redacted()}")
    lines.append(f"store: {settings.resolved_store_url}")
    if settings.log_max_bytes:
        lines.append(f"logs: {settings.logs_dir}")
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
        # What is no terminal may be a log that others read.
        if stdout.file.isatty():
            lines.append(f"log in: {new_login_link(settings, fleet.broker_url)}")
    lines.append("submit: training-worker submit JOB.yaml --watch")
    return "\n".join(lines)


def _start_demo_fleet(settings: Settings) -> "subprocess.Popen[bytes]":
    """Start ``up`` in a process and wait until it is ready."""
    ready, log = settings.home_dir / "ready", settings.home_dir / "fleet.log"
    ready.unlink(missing_ok=True)
    env = {key: value for key, value in os.environ.items() if not key.startswith("TRAINING_")}
    env |= {
        "TRAINING_HOME": str(settings.home),
        "TRAINING_GPUS": settings.gpus or "",
        "TRAINING_FLOWER_PORT": str(settings.flower_port),
        "TRAINING_CONSOLE_PORT": "0",
    }
    if settings.flower_basic_auth is not None:
        env["TRAINING_FLOWER_BASIC_AUTH"] = settings.flower_basic_auth.get_secret_value()
    command = [sys.executable, "-P", "-m", "worker", "up", "--ready-file", str(ready)]
    with log.open("wb") as output:
        fleet = spawn(command, env=env, stdout=output, stderr=output)
    deadline = time.monotonic() + _READY_WITHIN_S
    while not ready.exists():
        if fleet.poll() is not None or time.monotonic() > deadline:
            stop(fleet, grace_s=5)
            raise JobError(f"the fleet does not start; see {log}")
        time.sleep(0.05)
    return fleet
