"""Servers of other kinds than the embedded broker, among them those of the guide of failover."""

import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import redis
from redis import Redis

from tests.integration.fleets import free_port
from tests.waiting import wait_until
from worker.local.embedded_broker import find_server
from worker.supervision.process import kill_group, spawn, stop

MASTER = "training"
PASSWORD = "p@ss;w:rd/%"
QUOTED_PASSWORD = "p%40ss%3Bw%3Ard%2F%25"
SENTINEL_PASSWORD = "SENTINEL_PASSWORD"  # as in the guide
_GUIDE = Path(__file__).parents[1] / "docs" / "guides" / "failover.md"


@contextmanager
def running_server(folder: Path, *options: str) -> Iterator[int]:
    """Yield the port of a server with these options."""
    port, config = free_port(), folder / "valkey.conf"
    config.write_text(f"port {port}\nbind 127.0.0.1\ndir {folder}\n")
    process = spawn([str(find_server()), str(config), *options], stdout=subprocess.DEVNULL)

    def answers() -> bool:
        with Redis(port=port) as client, suppress(redis.ConnectionError):
            return bool(client.ping())
        return False

    wait_until(answers, timeout_s=20, description="the server answers")
    yield port
    stop(process, 5)


def cluster_options() -> list[str]:
    """Return the options of a Redis Cluster of one node."""
    return ["--cluster-enabled", "yes", "--cluster-port", str(free_port())]


class Sentinels:
    """Two servers and their sentinels, while entered.

    Args:
        folder: Folder for their data.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.servers = [free_port(), free_port()]
        self.ports = [free_port() for _ in range(3)]
        self._processes: dict[int, subprocess.Popen[bytes]] = {}

    @property
    def url(self) -> str:
        """The broker's URL, as an operator writes it: the password once."""
        first, *others = (f"127.0.0.1:{port}" for port in self.ports)
        return ";sentinel://".join([f"sentinel://:{QUOTED_PASSWORD}@{first}", *others])

    @property
    def env(self) -> dict[str, str]:
        """The settings of the fleet's processes."""
        return {
            "TRAINING_BROKER_URL": self.url,
            "TRAINING_BROKER_SENTINEL_MASTER": MASTER,
            "TRAINING_BROKER_SENTINEL_PASSWORD": SENTINEL_PASSWORD,
        }

    def client(self, port: int) -> Redis:
        """Connect to a server."""
        return Redis(port=port, password=PASSWORD, decode_responses=True)

    def master_port(self) -> int:
        """Return the port of the master that the first sentinel names."""
        with Redis(port=self.ports[0], password=SENTINEL_PASSWORD) as sentinel:
            _, port = sentinel.sentinel_get_master_addr_by_name(MASTER)
            return int(port)

    def kill_master(self) -> int:
        """Kill the master and wait until the replica has its place.

        Returns:
            The new master's port.
        """
        old = self.master_port()
        kill_group(self._processes.pop(old))
        wait_until(lambda: self.master_port() != old, timeout_s=30, description="a failover")
        return self.master_port()

    def start_server(self, port: int) -> None:
        """Start a server again, as the replica of the current master."""
        self._start_server(port, self.master_port())
        with self.client(port) as replica:
            wait_until(
                lambda: replica.info("replication").get("master_link_status") == "up",
                timeout_s=20,
                description="the replica has the master's data",
            )

    def demote_master(self) -> None:
        """Let the sentinels put the replica in the place of the living master."""
        old = self.master_port()

        def fail_over() -> bool:
            with (
                suppress(redis.ResponseError),
                Redis(port=self.ports[0], password=SENTINEL_PASSWORD) as sentinel,
            ):
                sentinel.execute_command("SENTINEL FAILOVER", MASTER)
            return self.master_port() != old

        wait_until(fail_over, timeout_s=30, description="a failover")

    def __enter__(self) -> Self:
        master, replica = self.servers
        self._start_server(master)
        self._start_server(replica, master)
        for port in self.ports:
            self._start_sentinel(port, master)
        wait_until(self._is_whole, timeout_s=30, description="all sentinels know each other")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for process in self._processes.values():
            kill_group(process)

    def _start_server(self, port: int, master: int | None = None) -> None:
        users, server, _ = _configurations()
        lines = [*users, *server, f'user default on ">{PASSWORD}" ~* &* +@all']
        lines += ["repl-diskless-sync-delay 0", 'save ""']
        if master is not None:
            lines.append(f"replicaof 127.0.0.1 {master}")
        self._start(port, lines)

    def _start_sentinel(self, port: int, master: int) -> None:
        *_, sentinel = _configurations()
        lines = [line.replace("MASTER 6379", f"127.0.0.1 {master}") for line in sentinel]
        lines += [
            f"sentinel down-after-milliseconds {MASTER} 1000",
            f"sentinel failover-timeout {MASTER} 5000",
        ]
        self._start(port, lines, "--sentinel")

    def _start(self, port: int, lines: list[str], *options: str) -> None:
        folder = self._folder / str(port)
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / "valkey.conf"
        file.write_text("\n".join([f"port {port}", "bind 127.0.0.1", f"dir {folder}", *lines]))
        with (folder / "log").open("ab") as log:
            command = [str(find_server()), str(file), *options]
            self._processes[port] = spawn(command, stdout=log, stderr=log)
        wait_until(
            lambda: "eady to accept" in self.log(port) or "Sentinel ID" in self.log(port),
            timeout_s=20,
            description="a server",
            detail=lambda: self.log(port),
        )

    def log(self, port: int) -> str:
        """Return a server's log."""
        return (self._folder / str(port) / "log").read_text("utf-8")

    def _is_whole(self) -> bool:
        reports = []
        for port in self.ports:
            with Redis(port=port, password=SENTINEL_PASSWORD) as sentinel:
                reports.append(sentinel.sentinel_master(MASTER))
        return (
            all(
                report["num-other-sentinels"] == 2 and report["num-slaves"] == 1
                for report in reports
            )
            and self._is_replicated()
        )

    def _is_replicated(self) -> bool:
        with self.client(self.servers[1]) as replica:
            return bool(replica.info("replication")["master_link_status"] == "up")


def _configurations() -> list[list[str]]:
    """Return the guide's lines of users, of a server and of a sentinel."""
    blocks = re.findall(
        r"^```text\n(.*?)^```$", _GUIDE.read_text("utf-8"), re.MULTILINE | re.DOTALL
    )
    return [block.splitlines() for block in blocks[:3]]
