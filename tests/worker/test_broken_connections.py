"""One start of a task through everything that a broker and a network do to its worker."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from celery import Celery
from redis import Redis

from tasks.state import connect
from tests.waiting import wait_until
from worker.broker import EmbeddedBroker

TIMEOUT_S = 2.0
PATIENCE_S = 40.0

Start = Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedBroker]:
    """One that these tests may stop."""
    with EmbeddedBroker(tmp_path_factory.mktemp("own-broker")) as broker:
        yield broker


@pytest.fixture
def client(broker: EmbeddedBroker) -> Iterator[Redis]:
    with connect(broker.url) as client:
        client.flushall()
        yield client


@pytest.fixture
def start(broker: EmbeddedBroker, client: Redis, tmp_path: Path) -> Iterator[Start]:
    started: list[subprocess.Popen[bytes]] = []

    def worker(name: str, **env: str) -> "subprocess.Popen[bytes]":
        module = "tests.worker.leased_worker"
        with (tmp_path / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", module, broker.url, name, str(TIMEOUT_S)],
                env={**os.environ, **env},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        started.append(process)
        wait_until(
            lambda: f"{name} is ready" in log_of(client),
            timeout_s=PATIENCE_S,
            description=f"{name} is ready",
            detail=(tmp_path / f"{name}.log").read_text,
        )
        return process

    yield worker
    for process in started:
        kill_host(process)


def kill_host(process: "subprocess.Popen[bytes]") -> None:
    """SIGKILL to a worker and its child at once."""
    with suppress(psutil.NoSuchProcess):
        for one in (it := psutil.Process(process.pid), *it.children(recursive=True)):
            one.kill()
    process.wait()


def log_of(client: Redis) -> list[str]:
    return [str(line) for line in client.lrange("log", 0, -1)]


def send(broker: EmbeddedBroker, seconds: float) -> str:
    app = Celery("sender", broker=broker.url, set_as_current=False)
    task_id: str = app.send_task("work", args=(seconds,), queue="work").id
    return task_id


def wait_for(client: Redis, line: str) -> None:
    def is_there() -> bool:
        with suppress(Exception):
            return line in log_of(client)
        return False

    wait_until(is_there, timeout_s=PATIENCE_S, description=line, detail=lambda: str(log_of(client)))


def acknowledged(client: Redis) -> None:
    wait_until(
        lambda: client.hlen("unacked") == 0 and client.llen("work") == 0,
        timeout_s=PATIENCE_S,
        description="its message is acknowledged",
    )


def cut_connections(broker: EmbeddedBroker, client: Redis) -> None:
    client.client_kill_filter(_type="normal", skipme=True)


def be_away_for_long(broker: EmbeddedBroker, client: Redis) -> None:
    broker.stop()
    time.sleep(1.5 * TIMEOUT_S)
    broker.start()


@pytest.mark.parametrize("fault", [cut_connections, be_away_for_long])
def test_a_task_runs_once_through_a_connection_that_breaks(
    broker: EmbeddedBroker,
    client: Redis,
    start: Start,
    fault: Callable[[EmbeddedBroker, Redis], None],
) -> None:
    start("first")
    task = send(broker, 4 * TIMEOUT_S)
    wait_for(client, f"first begins {task}")
    # It has nothing to do, and is back as early as the other one.
    start("second")
    fault(broker, client)
    wait_for(client, f"first ends {task}")
    acknowledged(client)
    assert [line for line in log_of(client) if "begins" in line] == [f"first begins {task}"]


def test_a_lost_workers_task_begins_on_another_one_in_little_more_than_a_timeout(
    broker: EmbeddedBroker, client: Redis, start: Start
) -> None:
    first = start("first")
    task = send(broker, 30)
    wait_for(client, f"first begins {task}")
    start("second")
    time.sleep(TIMEOUT_S)  # past its first renewals, and the sweeper's caution after its start
    kill_host(first)
    killed_at = time.monotonic()
    wait_for(client, f"second begins {task}")
    # Half a timeout until the lost one's upkeep passes on is over by then; the rest is for the
    # sweeper's pauses and a busy machine.
    assert time.monotonic() - killed_at < 4 * TIMEOUT_S


def test_a_task_is_held_to_its_end_through_a_warm_shutdown(
    broker: EmbeddedBroker, client: Redis, start: Start
) -> None:
    first = start("first")
    task = send(broker, 4 * TIMEOUT_S)
    wait_for(client, f"first begins {task}")
    start("second")
    first.send_signal(signal.SIGTERM)
    assert first.wait(PATIENCE_S) == 0
    assert [line for line in log_of(client) if "begins" in line] == [f"first begins {task}"]
    acknowledged(client)


def test_a_worker_whose_main_loop_hangs_loses_its_task(
    broker: EmbeddedBroker, client: Redis, start: Start
) -> None:
    start("first", HANGS_S="60")
    task = send(broker, 60)
    wait_for(client, f"first begins {task}")
    start("second")
    wait_for(client, f"second begins {task}")
