"""A fleet on one machine: broker, workers, Flower and console, kept alive and ended together."""

import logging
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from pydantic import SecretStr

from tasks.data.read_policy import ANYWHERE
from tasks.settings.settings import Settings
from worker.errors import FleetStartError
from worker.gpu.inventory import Gpu, find_gpus
from worker.local.embedded_broker import EmbeddedBroker
from worker.supervision.process import kill_group, spawn

logger = logging.getLogger(__name__)

_READY_WITHIN_S = 60.0
_FIRST_PAUSE_S = 1.0
_LONGEST_PAUSE_S = 30.0
# A child that has lived this long was well; its next fall starts with the first pause again.
_WELL_AFTER_S = 60.0


@dataclass
class _Child:
    """A process that is started again when it ends."""

    name: str
    argv: list[str]
    env: dict[str, str]
    process: "subprocess.Popen[bytes] | None" = None
    started_at: float = 0.0
    pause_s: float = _FIRST_PAUSE_S
    start_at: float = 0.0

    def start(self) -> None:
        self.started_at = time.monotonic()
        self.process = spawn(self.argv, env=self.env)

    def tend(self) -> None:
        """Start it again, after a pause, where it has ended."""
        now = time.monotonic()
        if self.process is None:
            if now >= self.start_at:
                self.start()
        elif self.process.poll() is not None:
            if now - self.started_at > _WELL_AFTER_S:
                self.pause_s = _FIRST_PAUSE_S
            code = self.process.returncode
            if code == 0:
                # Nobody ends so without being asked to.
                logger.info("%s has drained; it is not started again", self.name)
                self.process, self.start_at = None, math.inf
                return
            logger.warning("%s ended (%s); again in %g s", self.name, code, self.pause_s)
            self.process = None
            self.start_at = now + self.pause_s
            self.pause_s = min(2 * self.pause_s, _LONGEST_PAUSE_S)


@dataclass
class Fleet:
    """What ``up`` runs.

    Attributes:
        gpus: The GPUs that workers were started for.
        broker_url: Where jobs are sent.
    """

    gpus: list[Gpu]
    broker_url: str
    _broker: EmbeddedBroker | None
    _children: list[_Child]
    _ready_files: dict[str, Path]
    _stop_grace_s: float
    _stopping: bool = field(default=False)

    def wait_until_ready(self) -> None:
        """Return when every worker takes messages.

        Raises:
            FleetStartError: One does not.
        """
        deadline = time.monotonic() + _READY_WITHIN_S
        while waiting := [n for n, file in self._ready_files.items() if not file.exists()]:
            if time.monotonic() > deadline:
                raise FleetStartError(waiting, _READY_WITHIN_S)
            if self._stopping:
                return
            self._tend_all()

    def run(self) -> None:
        """Keep every child alive until somebody asks us to stop."""
        while not self._stopping:
            self._tend_all()

    def ask_to_stop(self, _signal: int = 0, _frame: FrameType | None = None) -> None:
        """End ``run``; a signal handler."""
        self._stopping = True

    def stop(self) -> None:
        """End every child: ask all, wait for their trainers' checkpoints, then insist."""
        running = [child.process for child in self._children if child.process is not None]
        for process in running:
            if process.poll() is None:
                process.terminate()
        deadline = time.monotonic() + self._stop_grace_s
        for process in running:
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                logger.warning("process %d does not stop; it is ended", process.pid)
            kill_group(process)

    def _tend_all(self) -> None:
        if self._broker is not None:
            self._broker.restart_if_dead()
        for child in self._children:
            child.tend()
        time.sleep(0.05)


@contextmanager
def running_fleet(settings: Settings) -> Iterator[Fleet]:
    """A fleet, stopped at the end: an embedded broker unless one is configured, a CPU worker, a
    worker for each GPU (an emulated one of 40 GB where there is none), Flower, console, metrics.

    Raises:
        BrokerStartError: The embedded broker cannot run.
        InventoryError: ``TRAINING_GPUS`` is no inventory.
    """  # noqa: D205 - the parts of a fleet do not fit a line
    gpus = find_gpus(settings.gpus, settings.cuda_visible_devices)
    if not gpus:
        settings = settings.model_copy(update={"gpus": "40gb"})
        gpus = find_gpus(settings.gpus, settings.cuda_visible_devices)
    with ExitStack() as stack:
        broker = None
        if settings.broker_url is None:
            broker = stack.enter_context(EmbeddedBroker(settings.home_dir))
            # Whoever reaches this broker may read this machine's files anyway.
            roots = settings.data_roots or ANYWHERE
            settings = settings.model_copy(
                update={"broker_url": SecretStr(broker.url), "data_roots": roots}
            )
        ready = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="training-worker-")))
        usable = [gpu for gpu in gpus if gpu.memory_class is not None]
        fleet = _fleet(settings, broker, usable, ready)
        stack.callback(fleet.stop)
        for signal_number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(signal_number, fleet.ask_to_stop)
        yield fleet


def _fleet(
    settings: Settings, broker: EmbeddedBroker | None, gpus: list[Gpu], ready: Path
) -> Fleet:
    assert settings.broker_url is not None
    url = settings.broker_url.get_secret_value()
    env = {**os.environ, "TRAINING_BROKER_URL": url}
    if settings.gpus is not None:
        env["TRAINING_GPUS"] = settings.gpus
    if settings.data_roots is not None:
        env["TRAINING_DATA_ROOTS"] = settings.data_roots
    children, ready_files = [], {}
    options = {"cpu": ["--queues", "cpu"]}
    options |= {f"gpu-{gpu.memory_class}-{i}": ["--gpu", gpu.uuid] for i, gpu in enumerate(gpus)}
    for name, which in options.items():
        ready_files[name] = ready / name
        arguments = ["worker", "--name", name, *which, "--ready-file", str(ready_files[name])]
        children.append(_Child(name, _command(*arguments), env))
    if settings.flower_port:
        children.append(_Child("flower", _command("flower"), env))
    if settings.metrics_port:
        children.append(_Child("metrics", _command("metrics"), env))
    if settings.console_port:
        children.append(_Child("console", _command("console"), env))
    return Fleet(
        gpus, url, broker, children, ready_files, settings.shutdown_timeout.total_seconds() + 10
    )


def _command(*arguments: str) -> list[str]:
    return [sys.executable, "-P", "-m", "worker", *arguments]
