"""A cluster for faults: a broker, a store and hosts, each with its own network."""

import os
import shutil
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterable
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil
import redis
from pydantic import SecretStr

from tasks.settings.settings import Settings
from tasks.state.connection import connect
from tasks.state.record import JobRecord
from tasks.store import Store
from tests.chaos.proxy import Proxy
from tests.waiting import wait_until
from worker.cli.client import client_of
from worker.local.embedded_broker import find_server
from worker.supervision.process import spawn

TIMEOUT_S = 4.0
"""The visibility timeout."""
_READY_WITHIN_S = 60.0
_ENDS_WITHIN_S = 60.0
_PROCESS_FAULTS = Path(__file__).parents[1] / "process_faults"
_DISK_BYTES = 256 * 2**20
_MARK = "CHAOS_CLUSTER"
_SLOW_STORE = Path(__file__).with_name("slow_store.c")
_WORKERS = {"cpu": ["--queues", "cpu"], "gpu": ["--gpu", "EMULATED-40gb-0"]}


class Broker:
    """A valkey server that can be killed and restarts with its data."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port: int = free.getsockname()[1]
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the server, unless it runs."""
        if self._process is not None:
            return
        self.folder.mkdir(exist_ok=True)
        settings = {
            "port": str(self.port),
            "bind": "127.0.0.1",
            "dir": str(self.folder),
            "appendonly": "yes",
            "save": "",
        }
        options = [word for name, value in settings.items() for word in (f"--{name}", value)]
        with (self.folder / "log").open("ab") as log:
            self._process = spawn([str(find_server()), *options], stdout=log, stderr=log)
        wait_until(self._answers, timeout_s=20, description="the broker answers")

    def kill(self) -> None:
        """Send SIGKILL."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def _answers(self) -> bool:
        with suppress(redis.RedisError), connect(self.url) as client:
            return bool(client.ping())
        return False


class Host:
    """A machine with a CPU worker and a GPU worker, behind its own network."""

    def __init__(self, name: str, broker_port: int, home: Path, env: dict[str, str]) -> None:
        self.name, self.network = name, Proxy(broker_port)
        self._home, self._ready_folder = home, home / "ready"
        self._ready_folder.mkdir(parents=True)
        self.disk_is_own = _mount_small(self._ready_folder)
        self.clock = home / "clock_offset"
        self._env = {
            **env,
            "PYTHONPATH": str(_PROCESS_FAULTS),
            "CLOCK_OFFSET_FILE": str(self.clock),
            "ENDING_THREAD": "lease-renewal",
            "TRAINING_HOME": str(home),
            "TRAINING_BROKER_URL": f"redis://127.0.0.1:{self.network.port}/0",
        }
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def start(self) -> None:
        """Start the workers that do not run."""
        for kind, which in _WORKERS.items():
            process = self._processes.get(kind)
            if process is not None and process.poll() is None:
                continue
            self._ready(kind).unlink(missing_ok=True)
            name = ["--name", f"{self.name}-{kind}", "--ready-file", str(self._ready(kind))]
            command = [sys.executable, "-P", "-m", "worker", "worker", *name, *which]
            with (self._home / f"{kind}.log").open("ab") as log:
                self._processes[kind] = spawn(command, env=self._env, stdout=log, stderr=log)

    def wait_until_ready(self) -> None:
        """Return when both workers take messages."""
        for kind in _WORKERS:
            wait_until(
                partial(self._is_ready, kind),
                timeout_s=_READY_WITHIN_S,
                description=f"{self.name}-{kind} is ready",
                detail=self.log,
            )

    def heal(self) -> None:
        """Set the clock right, and let files be written again."""
        self.clock.unlink(missing_ok=True)
        self.remount("rw")

    def remount(self, mode: str) -> None:
        """Let the disk of the ready files be written to (``rw``) or not (``ro``)."""
        if self.disk_is_own:
            mount = ["mount", "-o", f"remount,{mode}", str(self._ready_folder)]
            subprocess.run(mount, check=True)

    def unmount(self) -> None:
        """Remove the disk of the ready files."""
        if self.disk_is_own:
            subprocess.run(["umount", "--lazy", str(self._ready_folder)], check=True)

    def exit_code(self, kind: str) -> int:
        """Wait until a worker has ended; return its exit code."""
        return self._processes[kind].wait(_ENDS_WITHIN_S)

    def worker(self, kind: str) -> psutil.Process:
        """Return a worker's main process."""
        return psutil.Process(self._processes[kind].pid)

    def child(self, kind: str) -> psutil.Process | None:
        """Return the process that runs a worker's tasks."""
        with suppress(psutil.NoSuchProcess):  # an earlier fault may have ended the worker
            for child in self.worker(kind).children():
                if child.status() != psutil.STATUS_ZOMBIE:
                    return child
        return None

    def trainer(self) -> psutil.Process | None:
        """Return the GPU worker's trainer."""
        for process in self.processes():
            with suppress(psutil.Error):
                if "worker.trainer" in process.cmdline():
                    return process
        return None

    def processes(self) -> list[psutil.Process]:
        """Return all processes of the host."""
        found = []
        for started in self._processes.values():
            with suppress(psutil.NoSuchProcess):
                first = psutil.Process(started.pid)
                found += [first, *first.children(recursive=True)]
        return found

    def kill(self) -> None:
        """Kill all processes, as when the power fails."""
        signal_all("kill", self.processes())
        for started in self._processes.values():
            started.wait()

    def log(self) -> str:
        """Return the ends of the workers' logs."""
        texts = [path.read_text(errors="replace")[-6000:] for path in self._home.glob("*.log")]
        return f"--- {self.name}\n" + "\n".join(texts)

    def _ready(self, kind: str) -> Path:
        return self._ready_folder / kind

    def _is_ready(self, kind: str) -> bool:
        # A worker replaces a child that was killed; its ready file stays.
        return self._ready(kind).exists() and self.child(kind) is not None


def _mount_small(folder: Path) -> bool:
    """Mount a disk that is small enough to be filled; return whether that succeeded."""
    if os.geteuid() != 0 or sys.platform != "linux":
        return False
    mount = ["mount", "-t", "tmpfs", "-o", f"size={_DISK_BYTES}", "tmpfs", str(folder)]
    return subprocess.run(mount, capture_output=True, check=False).returncode == 0


def _build_slow_store(folder: Path) -> Path | None:
    """Build the library that slows down a store; None without a compiler."""
    compiler = shutil.which("cc")
    if compiler is None or sys.platform != "linux":
        return None
    library = folder / "slow_store.so"
    command = [compiler, "-shared", "-fPIC", "-Wall", "-Werror", "-o", str(library)]
    subprocess.run([*command, str(_SLOW_STORE), "-ldl"], check=True)
    return library


def signal_all(action: str, processes: Iterable[psutil.Process]) -> None:
    """``kill``, ``suspend`` or ``resume`` those of the processes that still run."""
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            getattr(process, action)()


class Cluster:
    """The whole cluster; ``heal`` undoes all faults.

    Args:
        folder: An empty folder.
        hosts: The number of hosts.
    """

    def __init__(self, folder: Path, hosts: int = 2) -> None:
        self.mark = uuid.uuid4().hex
        self.folder = folder
        self.broker = Broker(folder / "broker")
        self.disk = folder / "disk"
        self.disk.mkdir()
        self.disk_is_small = _mount_small(self.disk)
        store = self.disk / "store"
        store.mkdir()
        self.store = Store(store.as_uri())
        slow_store = _build_slow_store(folder)
        self.store_can_be_slow = slow_store is not None
        env = {
            **{k: v for k, v in os.environ.items() if not k.startswith("TRAINING_")},
            _MARK: self.mark,
            "TRAINING_STORE_URL": store.as_uri(),
            "TRAINING_DATA_ROOTS": str(folder),
            "TRAINING_GPUS": "40gb",
            "TRAINING_VISIBILITY_TIMEOUT": str(TIMEOUT_S),
            "TRAINING_RETRY_BACKOFF": "1",
            "TRAINING_SHUTDOWN_TIMEOUT": "20",
            "TRAINING_TRAINER_HEARTBEAT_TIMEOUT": "30",
            "TRAINING_TRAINER_RESTARTS": "5",
            "OMP_NUM_THREADS": "1",
            "SLOW_STORE": str(store),
            "LD_PRELOAD": str(slow_store or ""),
        }
        self.hosts = [
            Host(name, self.broker.port, folder / name, env) for name in "abcdefgh"[:hosts]
        ]

    def __enter__(self) -> Self:
        try:
            self.heal()
        except BaseException:
            self.close()
            raise
        settings = Settings(broker_url=SecretStr(self.broker.url))
        self.client = client_of(settings)
        self.redis = connect(self.broker.url)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End all processes and unmount the disk."""
        for host in self.hosts:
            host.kill()
            host.network.close()
            host.unmount()
        self.broker.kill()
        if self.disk_is_small:
            subprocess.run(["umount", "--lazy", str(self.disk)], check=True)

    def heal(self) -> None:
        """Let everything run again."""
        self.broker.start()
        for host in self.hosts:
            host.network.heal()
            host.heal()
            signal_all("resume", host.processes())
            host.start()
        for host in self.hosts:
            host.wait_until_ready()

    def host_of(self, job_id: str) -> Host:
        """Return the host that began the job's newest stage."""
        record = self.client.state.get(job_id)
        newest = max(record.stages.values(), key=lambda stage: stage.attempt)
        return next(host for host in self.hosts if newest.worker.startswith(f"{host.name}-"))

    def record(self, job_id: str) -> JobRecord | None:
        """Return the record of a job; None while the broker is unavailable."""
        with suppress(redis.RedisError):
            return self.client.state.get(job_id)
        return None

    def orphans(self) -> list[psutil.Process]:
        """Return processes of the cluster that no worker owns."""
        owned = {process.pid for host in self.hosts for process in host.processes()}
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.status() == psutil.STATUS_ZOMBIE or process.pid in owned:
                    continue
                if process.environ().get(_MARK) == self.mark:
                    found.append(process)
        return found

    def log(self) -> str:
        """Return the ends of all workers' logs."""
        return "\n".join(host.log() for host in self.hosts)


def sleep(timeouts: float) -> None:
    """Sleep for a number of visibility timeouts."""
    time.sleep(timeouts * TIMEOUT_S)
