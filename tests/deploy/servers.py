"""The broker and the processes of the manifests, started on this machine."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self

from redis import Redis

from tasks.state.connection import connect
from tests.deploy.manifests import DEPLOY, Process, compose
from tests.integration.fleets import free_port
from tests.waiting import wait_until
from worker.local.embedded_broker import find_server
from worker.supervision.process import spawn

PATIENCE_S = 60


class Broker:
    """The server of ``compose.yaml``, with the users of ``secrets.sh``.

    Args:
        folder: Folder for its data and secrets.
    """

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self.secrets = folder / "secrets"
        self.data = folder / "data"
        self.data.mkdir(parents=True, exist_ok=True)
        make = ["bash", str(DEPLOY / "secrets.sh"), str(self.secrets)]
        subprocess.run([*make, f"redis://127.0.0.1:{self.port}/0"], check=True)

    def url(self, role: str) -> str:
        """Return the address with a role's name and password."""
        return (self.secrets / role / "TRAINING_BROKER_URL").read_text("utf-8")

    def client(self, role: str) -> Redis:
        """Connect as a role."""
        return connect(self.url(role))

    def __enter__(self) -> Self:
        command = compose()["services"]["valkey"]["command"]
        assert command[0] == "valkey-server"
        paths = {"/data": str(self.data), "/run/secrets": str(self.secrets)}
        argv = [_replaced(word, paths) for word in command[1:]]
        argv += ["--port", str(self.port), "--bind", "127.0.0.1"]
        with (self.data / "log").open("wb") as log:
            self._process = spawn([str(find_server()), *argv], stdout=log)
        wait_until(self._answers, timeout_s=PATIENCE_S, description="the broker", detail=self.log)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.terminate()
        assert self._process.wait(PATIENCE_S) == 0

    def log(self) -> str:
        """Return the server's log."""
        return (self.data / "log").read_text("utf-8")

    def _answers(self) -> bool:
        assert self._process.poll() is None, self.log()
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", self.port)) != 0:
                return False
        # The health check's request, which needs no user.
        with Redis(port=self.port) as client:
            return bool(client.ping())


class Started:
    """A process of a manifest, in separate folders.

    Args:
        process: The manifest's process.
        broker: The broker with its secrets.
        folder: Replaces the folders that the manifest names.
        settings: More environment variables.
    """

    def __init__(self, process: Process, broker: Broker, folder: Path, **settings: str) -> None:
        self.port = free_port()
        paths = {
            process.secrets_dir: str(folder / "secrets"),
            "/var/lib/training-worker": str(folder / "home"),
            "/srv/store": str(folder / "store"),
            "/tmp/": f"{folder}/tmp/",
            "%t/": f"{folder}/run/",
        }
        for name, file in process.secrets.items():
            (folder / "secrets").mkdir(parents=True, exist_ok=True)
            shutil.copy(broker.secrets / file, folder / "secrets" / name)
        env = {name: _replaced(value, paths) for name, value in process.env.items()}
        # Several processes of one kind run on this machine.
        env = {n: str(self.port) if n.endswith("_PORT") else v for n, v in env.items()}
        if "--ready-file" not in process.argv:
            env.setdefault(f"TRAINING_{process.command.upper()}_PORT", str(self.port))
        self.process = replace(process, argv=tuple(_replaced(word, paths) for word in process.argv))
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("TRAINING_")}
        self.env = {**inherited, "TRAINING_GPUS": "40gb", **env, **settings}
        self._log = folder / "log"
        self._popen: subprocess.Popen[bytes] | None = None
        (folder / "home").mkdir(parents=True)
        if self.ready_file is not None:
            self.ready_file.parent.mkdir(parents=True)

    @property
    def ready_file(self) -> Path | None:
        """The file that marks readiness; None for a process with a port."""
        argv = self.process.argv
        return Path(argv[argv.index("--ready-file") + 1]) if "--ready-file" in argv else None

    def start(self) -> None:
        """Start the process."""
        command = [sys.executable, "-P", "-m", "worker", *self.process.argv]
        with self._log.open("wb") as log:
            self._popen = spawn(command, env=self.env, stdout=log, stderr=log)

    def is_ready(self) -> bool:
        """Return whether the ready file exists, or the port answers."""
        assert self._popen is not None
        assert self._popen.poll() is None, self.log()
        if self.ready_file is not None:
            return self.ready_file.exists()
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def wait_until_ready(self) -> None:
        """Wait until the process is ready."""
        description = f"{self.process.where} is ready"
        wait_until(self.is_ready, timeout_s=PATIENCE_S, description=description, detail=self.log)

    def ask_to_stop(self) -> None:
        """Send the signal of a supervisor."""
        assert self._popen is not None
        self._popen.send_signal(signal.SIGTERM)

    def end(self) -> int:
        """Wait for the end, and return the exit code."""
        assert self._popen is not None
        return self._popen.wait(PATIENCE_S)

    def kill(self) -> None:
        """Kill the process if it still runs."""
        if self._popen is not None and self._popen.poll() is None:
            self._popen.kill()
            self._popen.wait()

    def log(self) -> str:
        """Return the process's log."""
        return self._log.read_text("utf-8")


def _replaced(text: str, paths: dict[str, str]) -> str:
    return re.sub("|".join(map(re.escape, paths)), lambda match: paths[match[0]], text)
