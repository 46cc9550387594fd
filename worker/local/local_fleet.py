"""A fleet on one machine: broker, workers, Flower, console and metrics, supervised together."""

import logging
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import FrameType

from pydantic import SecretStr

from routing.classes import MemoryClass
from tasks.data.read_policy import ANYWHERE
from tasks.extras import is_installed
from tasks.process.signals import drain_on_hangup
from tasks.settings.settings import Settings
from worker.errors import FleetStartError
from worker.gpu.inventory import Gpu, find_gpus
from worker.local.demo import prepare_demo
from worker.local.embedded_broker import EmbeddedBroker
from worker.local.log_files import LogFiles
from worker.local.ports import console_answers, is_listening
from worker.supervision.process import kill_group, spawn

logger = logging.getLogger(__name__)

# A starting worker may import the library of engine invoke-training from a cold disk.
_READY_WITHIN_S = 180.0
_CHECK_EVERY_S = 0.05
_FIRST_RESTART_DELAY_S = 1.0
_MAX_RESTART_DELAY_S = 30.0
# A child that has run this long is healthy: its next restart has the first delay again.
_HEALTHY_AFTER_S = 60.0
# Besides the trainers' own time to save a checkpoint.
_STOP_MARGIN_S = 10.0
_EMULATED_GPUS = "40gb"
PARTS = ("flower", "metrics", "console")
"""What runs beside the workers, each with a port and an address in the settings."""


@dataclass
class _Child:
    """A process that is restarted when it ends."""

    name: str
    argv: list[str]
    env: dict[str, str]
    drains: bool
    """Whether exit code 0 means that it was asked to stop for good."""
    logs: LogFiles
    process: "subprocess.Popen[bytes] | None" = None
    started_at: float = 0.0
    delay_s: float = _FIRST_RESTART_DELAY_S
    start_at: float = 0.0

    def supervise(self) -> None:
        """Start the process if it is due; schedule a restart if it has ended."""
        now = time.monotonic()
        if self.process is None:
            if now >= self.start_at:
                self._start(now)
        elif self.process.poll() is not None:
            self._schedule_restart(now, self.process.returncode)

    def _start(self, now: float) -> None:
        self.started_at = now
        # Children log to standard error; what some print, 'up' prints for all of them.
        self.process = spawn(
            self.argv, env=self.env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        assert self.process.stderr is not None
        self.logs.copy(self.name, self.process.stderr)

    def _schedule_restart(self, now: float, code: int) -> None:
        self.process = None
        if code == 0 and self.drains:
            logger.info("%s has drained; it is not restarted", self.name)
            self.start_at = math.inf
            return
        if now - self.started_at > _HEALTHY_AFTER_S:
            self.delay_s = _FIRST_RESTART_DELAY_S
        logger.warning("%s ended (%s); restart in %g s", self.name, code, self.delay_s)
        self.start_at = now + self.delay_s
        self.delay_s = min(2 * self.delay_s, _MAX_RESTART_DELAY_S)


@dataclass
class Fleet:
    """The fleet of ``up``.

    Attributes:
        gpus: The GPUs with a worker.
        broker_url: The fleet's broker, with its password.
    """

    gpus: list[Gpu]
    broker_url: str
    _broker: EmbeddedBroker | None
    _children: list[_Child]
    _is_ready: dict[str, Callable[[], bool]]
    _stop_within_s: float
    _logs: LogFiles
    _is_stopping: bool = field(default=False)

    def wait_until_ready(self) -> None:
        """Return when every worker takes messages, each part listens, and the console answers.

        Raises:
            FleetStartError: One of them does not.
        """
        deadline = time.monotonic() + _READY_WITHIN_S
        while waiting := [name for name, is_ready in self._is_ready.items() if not is_ready()]:
            if time.monotonic() > deadline:
                raise FleetStartError(waiting, _READY_WITHIN_S)
            if self._is_stopping:
                return
            self._supervise()

    def run(self) -> None:
        """Supervise the fleet until it shall stop."""
        while not self._is_stopping:
            self._supervise()

    def request_stop(self, _signal: int = 0, _frame: FrameType | None = None) -> None:
        """End ``run``; a signal handler."""
        self._is_stopping = True

    def stop(self) -> None:
        """Terminate every child, wait for the trainers' checkpoints, then kill the children."""
        running = [child.process for child in self._children if child.process is not None]
        for process in running:
            if process.poll() is None:
                process.terminate()
        deadline = time.monotonic() + self._stop_within_s
        for process in running:
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                logger.warning("process %d does not stop; it is killed", process.pid)
            kill_group(process)
        self._logs.close()

    def _supervise(self) -> None:
        if self._broker is not None:
            self._broker.restart_if_dead()
        for child in self._children:
            child.supervise()
        time.sleep(_CHECK_EVERY_S)


@contextmanager
def running_fleet(settings: Settings) -> Iterator[Fleet]:
    """Yield a fleet; stop it at the end.

    It has an embedded broker unless one is configured, a CPU worker, a worker for each GPU (an
    emulated one of 40 GB on a machine without GPUs), and, by their ports, Flower, console and
    metrics.

    Raises:
        BrokerStartError: The embedded broker cannot run.
        FleetRunningError: Another fleet runs in this home.
        InventoryError: ``TRAINING_GPUS`` is not an inventory.
    """
    gpus = find_gpus(settings.gpus, settings.cuda_visible_devices)
    if not gpus:
        settings = settings.model_copy(update={"gpus": _EMULATED_GPUS})
        gpus = find_gpus(settings.gpus, settings.cuda_visible_devices)
    usable = [gpu for gpu in gpus if gpu.memory_class is not None]
    with ExitStack() as stack:
        broker = None
        if settings.broker_url is None:
            broker = stack.enter_context(EmbeddedBroker(settings.home_dir, _console_of(settings)))
            # The users of this broker can read this machine's files anyway.
            roots = settings.data_roots or ANYWHERE
            settings = settings.model_copy(
                update={"broker_url": SecretStr(broker.url), "data_roots": roots}
            )
            # All workers are on this machine, so that they reach the folder.
            if settings.demo_dir is None and _has_no_real_work(usable):
                folder = settings.home_dir / "demo"
                settings = settings.model_copy(update={"demo_dir": folder})
        settings = settings.model_copy(update={"demo_dir": _prepared_demo(settings, usable)})
        ready = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="training-worker-")))
        logs = LogFiles(settings.logs_dir, settings.log_max_bytes)
        logs.add_own("up")
        fleet = _make_fleet(settings, broker, usable, ready, logs)
        stack.callback(fleet.stop)
        for signal_number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(signal_number, fleet.request_stop)
        drain_on_hangup()
        yield fleet


def _make_fleet(
    settings: Settings,
    broker: EmbeddedBroker | None,
    gpus: list[Gpu],
    ready: Path,
    logs: LogFiles,
) -> Fleet:
    env = _child_environment(settings)
    options = {"cpu": ["--queues", "cpu"]}
    options |= {f"gpu-{gpu.memory_class}-{i}": ["--gpu", gpu.uuid] for i, gpu in enumerate(gpus)}
    ready_files = {name: ready / name for name in options}
    commands = {
        name: ["worker", "--name", name, *which, "--ready-file", str(ready_files[name])]
        for name, which in options.items()
    }
    is_ready: dict[str, Callable[[], bool]] = {n: f.exists for n, f in ready_files.items()}
    for part in PARTS:
        if port := getattr(settings, f"{part}_port"):
            commands[part] = [part]
            answers = console_answers if part == "console" else is_listening
            is_ready[part] = partial(answers, getattr(settings, f"{part}_address"), port)
    python = [sys.executable, "-P", "-m", "worker"]
    children = [
        _Child(name, [*python, *command], env, drains=name not in PARTS, logs=logs)
        for name, command in commands.items()
    ]
    stop_within_s = settings.shutdown_timeout.total_seconds() + _STOP_MARGIN_S
    url = env["TRAINING_BROKER_URL"]
    return Fleet(gpus, url, broker, children, is_ready, stop_within_s, logs)


def _prepared_demo(settings: Settings, gpus: list[Gpu]) -> Path | None:
    """Return the folder of the demo that the console offers, with all its files."""
    if not settings.console_port or settings.demo_dir is None or not is_installed("torch"):
        return None
    folder = settings.demo_dir.expanduser().absolute()
    has_40gb = any(gpu.memory_class and gpu.memory_class >= MemoryClass.GB40 for gpu in gpus)
    try:
        prepare_demo(folder, "flux" if has_40gb else "sdxl")
    except OSError as error:
        logger.warning(
            "the console offers no demo: cannot write %s: %s; set TRAINING_DEMO_DIR to a folder "
            "that can be written",
            folder,
            error,
        )
        return None
    return folder


def _has_no_real_work(gpus: list[Gpu]) -> bool:
    """Return whether real base models train nowhere here, or slowly: the demo is the first job."""
    return all(
        gpu.emulated or (gpu.memory_class is not None and gpu.memory_class < MemoryClass.GB40)
        for gpu in gpus
    )


def _console_of(settings: Settings) -> str:
    return settings.console_base_url if settings.console_port else ""


def _child_environment(settings: Settings) -> dict[str, str]:
    """Return our environment, with the settings that the fleet has chosen itself."""
    assert settings.broker_url is not None
    env = {**os.environ, "TRAINING_BROKER_URL": settings.broker_url.get_secret_value()}
    env["TRAINING_LOG_LEVEL"] = settings.log_level
    if settings.gpus is not None:
        env["TRAINING_GPUS"] = settings.gpus
    if settings.data_roots is not None:
        env["TRAINING_DATA_ROOTS"] = settings.data_roots
    env.pop("TRAINING_DEMO_DIR", None)
    if settings.demo_dir is not None:
        env["TRAINING_DEMO_DIR"] = str(settings.demo_dir)
    return env
