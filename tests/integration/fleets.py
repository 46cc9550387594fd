"""A local fleet with its own home, driven by its command line."""

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil
import yaml

from tasks.events import Event, Note
from tasks.state.broker_url import with_sentinel
from tasks.state.connection import connect
from tasks.state.counters import Counters
from tasks.state.job_store import JobStore
from tasks.state.record import JobRecord
from tests.waiting import wait_until
from worker.local.embedded_broker import find_running
from worker.supervision.process import spawn

# Coverage of a busy two-core machine, not an expectation of how long things take.
PATIENCE_S = 90
# Below the ports of outgoing connections, which begin at 32768.
_FIRST_PORT, _PORTS = 20_000, 12_000


class Fleet:
    """A process of ``training-worker up``.

    Args:
        home: Its folder.
        gpus: The declared inventory, such as ``40gb,24gb``; None for what the driver reports.
        settings: More environment variables.
    """

    def __init__(self, home: Path, gpus: str | None, **settings: str) -> None:
        self.home = home
        self.env = {
            **{k: v for k, v in os.environ.items() if not k.startswith("TRAINING_")},
            "TRAINING_HOME": str(home),
            "TRAINING_FLOWER_PORT": "0",
            "TRAINING_CONSOLE_PORT": "0",
            "TRAINING_VISIBILITY_TIMEOUT": "4",
            **settings,
        }
        if gpus is not None:
            self.env["TRAINING_GPUS"] = gpus
        self._lines: list[str] = []

    def __enter__(self) -> Self:
        self.home.mkdir(parents=True, exist_ok=True)
        # It ends with this process, even when this one is killed.
        self.process = spawn(
            [sys.executable, "-P", "-m", "worker", "up"],
            env=self.env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        threading.Thread(target=self._read, daemon=True).start()
        wait_until(
            lambda: self._ready() or self.process.poll() is not None,
            timeout_s=PATIENCE_S,
            description="the fleet is ready",
            detail=self.log,
        )
        assert self._ready(), self.log()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        family = self.process_family()
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(PATIENCE_S)
        wait_until(
            lambda: not any(member.is_running() for member in family),
            timeout_s=20,
            description="no process of the fleet is left",
            detail=self.log,
        )

    @property
    def broker_url(self) -> str:
        """The URL of the fleet's broker: the one in its settings, or its own."""
        url = self.env.get("TRAINING_BROKER_URL") or find_running(self.home)
        assert url is not None
        sentinel = "TRAINING_BROKER_SENTINEL"
        return with_sentinel(
            url, self.env.get(f"{sentinel}_MASTER"), self.env.get(f"{sentinel}_PASSWORD")
        )

    @property
    def metrics_url(self) -> str:
        """The URL of the fleet's metrics, if it has a port for them."""
        return f"http://127.0.0.1:{self.env['TRAINING_METRICS_PORT']}/metrics"

    def counts(self) -> dict[str, int]:
        """Return the fleet's counters."""
        with connect(self.broker_url) as client:
            return Counters(client, timedelta(hours=1)).read()

    def log(self) -> str:
        """Return the fleet's output."""
        return "".join(self._lines)

    def run(self, *arguments: str, timeout_s: float = PATIENCE_S) -> "Ran":
        """Run a command and wait for its end."""
        done = subprocess.run(
            [sys.executable, "-P", "-m", "worker", *arguments],
            env=self.env,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        return Ran(done.returncode, done.stdout, done.stderr)

    def submit(self, job: dict[str, Any], *options: str) -> "Ran":
        """Submit a job from a file, as JSON."""
        path = self.home / "job.yaml"
        path.write_text(yaml.safe_dump(job), "utf-8")
        return self.run("submit", str(path), "--json", *options)

    def status(self, job_id: str) -> dict[str, Any]:
        """Return the report of ``status`` on a job."""
        answer: dict[str, Any] = json.loads(self.run("status", job_id, "--json").stdout)
        return answer

    @property
    def console(self) -> str:
        """The URL of the web console."""
        return f"http://127.0.0.1:{self.env['TRAINING_CONSOLE_PORT']}"

    def process_family(self) -> list[psutil.Process]:
        """Return the fleet's first process and all its descendants."""
        first = psutil.Process(self.process.pid)
        return [first, *first.children(recursive=True)]

    def record(self, job_id: str) -> JobRecord:
        """Return the record of a job, from the broker."""
        with connect(self.broker_url) as client:
            return JobStore(client, timedelta(hours=1)).get(job_id)

    def events(self, job_id: str) -> list[Event]:
        """Return the events of a job."""
        return [event for _, event in self.timed_events(job_id)]

    def timed_events(self, job_id: str) -> list[tuple[float, Event]]:
        """Return the events of a job, each with its time in seconds since 1970."""
        with connect(self.broker_url) as client:
            events = list(JobStore(client, timedelta(hours=1)).events(job_id))
        return [(int(position.partition("-")[0]) / 1000, event) for position, event in events]

    def notes(self, job_id: str) -> list[str]:
        """Return the messages of a job's notes."""
        return [event.message for event in self.events(job_id) if isinstance(event, Note)]

    def trainers(self) -> list[psutil.Process]:
        """Return the running trainer processes."""
        return self._processes("worker.trainer")

    def workers(self) -> list[psutil.Process]:
        """Return the worker processes: parents and pool children."""
        return self._processes("worker", "worker")

    def decoders(self) -> list[psutil.Process]:
        """Return the processes that decode images."""
        return self._processes("tasks.data.decoding.decoder")

    def _processes(self, module: str, *then: str) -> list[psutil.Process]:
        wanted = ["-m", module, *then]
        found = []
        for child in psutil.Process(self.process.pid).children(recursive=True):
            try:
                line = child.cmdline()
            except psutil.NoSuchProcess:
                continue
            if any(line[i : i + len(wanted)] == wanted for i in range(len(line))):
                found.append(child)
        return found

    def _ready(self) -> bool:
        return any(line.startswith("ready") for line in self._lines)

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as output:
            for line in output:
                self._lines.append(line.decode())


def free_port() -> int:
    """Return an unused port that the kernel gives to no outgoing connection."""
    while True:
        # Every pytest process must draw other numbers; `random` has the same seed in all of them.
        port = _FIRST_PORT + secrets.randbelow(_PORTS)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


class Ran:
    """The exit code and output of a command."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err
        self.stdout = out

    @property
    def documents(self) -> list[dict[str, Any]]:
        """The documents that it printed with ``--json``, one per line."""
        return [json.loads(line) for line in self.out.splitlines()]

    def __repr__(self) -> str:
        return f"exit {self.code}\n{self.out}\n{self.err}"
