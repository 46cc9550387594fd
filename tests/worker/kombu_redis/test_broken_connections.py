"""A task starts once, whatever the broker and the network do to its worker."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

import psutil
import pytest
from celery import Celery, Signature, chain
from redis import Redis

from tasks.state.connection import connect
from tests.waiting import wait_until
from tests.worker.kombu_redis.leased_worker import KEYS, QUEUES
from worker.local.embedded_broker import EmbeddedBroker
from worker.supervision.process import spawn

TIMEOUT_S = 2.0
WRONG_CLOCK = Path(__file__).parents[2] / "process_faults"
PATIENCE_S = 40.0


class Fleet:
    """Workers on a broker that can be stopped, and the log of their tasks."""

    def __init__(self, broker: EmbeddedBroker, client: Redis, folder: Path) -> None:
        self.broker, self.client = broker, client
        self._folder, self._log = folder, folder / "log"
        self._log.touch()
        self._started: list[subprocess.Popen[bytes]] = []
        self._sender = Celery("sender", broker=broker.url, set_as_current=False)

    def start(self, name: str, **env: str) -> "subprocess.Popen[bytes]":
        """Start a worker, and return when it takes messages."""
        command = [sys.executable, "-m", "tests.worker.kombu_redis.leased_worker"]
        output = self._folder / f"{name}.log"
        with output.open("wb") as file:
            process = spawn(
                [*command, self.broker.url, str(self._log), name, str(TIMEOUT_S)],
                env={**os.environ, **env},
                stdout=file,
                stderr=file,
            )
        self._started.append(process)
        self.wait_for(f"{name} is ready")
        return process

    def kill(self, process: "subprocess.Popen[bytes]") -> None:
        """Send SIGKILL to a worker and its child at once, as when a host loses its power."""
        with suppress(psutil.NoSuchProcess):
            worker = psutil.Process(process.pid)
            for each in (worker, *worker.children(recursive=True)):
                each.kill()
        process.wait()

    def kill_all(self) -> None:
        for process in self._started:
            self.kill(process)

    def use(self, options: dict[str, Any]) -> None:
        """Send with these transport options."""
        self._sender.conf.broker_transport_options = options

    def task(self, seconds: float, queue: str = QUEUES[0], priority: int = 0) -> Signature:
        task: Signature = self._sender.signature("work", args=(seconds,), immutable=True)
        return task.set(queue=queue, priority=priority, task_id=str(uuid4()))

    def send(self, task: Signature) -> str:
        task_id: str = task.apply_async().id
        return task_id

    def log(self, word: str = "") -> list[str]:
        return [line for line in self._log.read_text().splitlines() if word in line]

    def wait_for(self, line: str) -> None:
        self.wait_until(lambda: line in self.log(), line)

    def wait_until(self, predicate: Callable[[], bool], description: str) -> None:
        wait_until(predicate, timeout_s=PATIENCE_S, description=description, detail=self.output)

    def wait_until_nothing_is_held(self) -> None:
        """Wait until kombu has no queue and no unacknowledged message."""
        keys = ("unacked", *QUEUES, "ours:held", *(f"ours:{queue}" for queue in QUEUES))
        self.wait_until(lambda: not self.client.exists(*keys), "all messages are acknowledged")

    def output(self) -> str:
        """Return the ends of all logs."""
        return "\n".join(path.read_text()[-4000:] for path in self._folder.glob("*log"))


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedBroker]:
    """A broker that these tests may stop."""
    with EmbeddedBroker(tmp_path_factory.mktemp("own-broker")) as broker:
        yield broker


@pytest.fixture
def fleet(broker: EmbeddedBroker, tmp_path: Path) -> Iterator[Fleet]:
    with connect(broker.url) as client:
        client.flushall()
        fleet = Fleet(broker, client, tmp_path)
        yield fleet
        fleet.kill_all()


def cut_connections(fleet: Fleet) -> None:
    fleet.client.client_kill_filter(_type="normal", skipme=True)


def stop_broker_for_a_while(fleet: Fleet) -> None:
    fleet.broker.stop()
    time.sleep(1.5 * TIMEOUT_S)
    fleet.broker.start()


@pytest.mark.parametrize("problem", [cut_connections, stop_broker_for_a_while])
def test_a_task_runs_once_through_a_broken_connection(
    fleet: Fleet, problem: Callable[[Fleet], None]
) -> None:
    fleet.start("first")
    task = fleet.send(fleet.task(4 * TIMEOUT_S))
    fleet.wait_for(f"first begins {task}")
    # It is idle, and reconnects as early as the first one.
    fleet.start("second")
    problem(fleet)
    fleet.wait_for(f"first ends {task}")
    fleet.wait_until_nothing_is_held()
    assert fleet.log("begins") == [f"first begins {task}"]


def test_a_task_that_ends_without_a_broker_has_one_successor(fleet: Fleet) -> None:
    fleet.start("first")
    first, second = fleet.task(1), fleet.task(0)
    fleet.send(chain(first, second))
    fleet.wait_for(f"first begins {first.id}")
    stop_broker_for_a_while(fleet)
    fleet.wait_for(f"first ends {second.id}")
    fleet.wait_until_nothing_is_held()
    assert fleet.log("begins") == [f"first begins {task.id}" for task in (first, second)]


def test_another_worker_takes_over_a_lost_workers_task(fleet: Fleet) -> None:
    first = fleet.start("first")
    task = fleet.send(fleet.task(60))
    fleet.wait_for(f"first begins {task}")
    fleet.start("second")
    fleet.kill(first)
    fleet.wait_for(f"second begins {task}")


def test_tasks_run_once_with_custom_transport_keys(fleet: Fleet) -> None:
    fleet.use(KEYS)
    workers = {name: fleet.start(name, TRANSPORT_OPTIONS=json.dumps(KEYS)) for name in "ab"}
    tasks = [
        fleet.send(fleet.task(3 * TIMEOUT_S, queue, priority))
        for queue, priority in zip(QUEUES, (9, 3), strict=True)
    ]
    fleet.wait_until(lambda: len(fleet.log("ends")) == 2, "both tasks end")
    fleet.wait_until_nothing_is_held()
    assert sorted(line.split()[2] for line in fleet.log("begins")) == sorted(tasks)
    lost = fleet.send(fleet.task(2 * TIMEOUT_S, QUEUES[1], priority=9))
    fleet.wait_until(lambda: len(fleet.log(f"begins {lost}")) == 1, "the third task begins")
    assert fleet.client.hlen("ours:held") == 1
    fleet.kill(workers.pop(fleet.log(f"begins {lost}")[0][0]))
    [other] = workers
    fleet.wait_for(f"{other} ends {lost}")
    fleet.wait_until_nothing_is_held()
    assert len(fleet.log(f"begins {lost}")) == 2
    assert not fleet.client.exists("unacked", "unacked_index", *QUEUES)


@pytest.mark.parametrize(
    ("wrong", "ahead_s", "then_ahead_s"),
    [("leader", 300, 300), ("leader", 0, 300), ("other", -300, -300), ("other", 0, -300)],
)
def test_a_wrong_clock_starts_no_task_twice(
    fleet: Fleet, tmp_path: Path, wrong: str, ahead_s: int, then_ahead_s: int
) -> None:
    clock = tmp_path / "ahead_s"
    clock.write_text(str(ahead_s))
    # The one that starts first is elected.
    for name, queue in (("leader", QUEUES[1]), ("other", QUEUES[0])):
        is_wrong = {"PYTHONPATH": str(WRONG_CLOCK), "CLOCK_OFFSET_FILE": str(clock)}
        fleet.start(name, QUEUES=queue, **(is_wrong if name == wrong else {}))
    task = fleet.send(fleet.task(2 * TIMEOUT_S))
    fleet.wait_for(f"other begins {task}")
    clock.write_text(str(then_ahead_s))
    fleet.wait_for(f"other ends {task}")
    fleet.wait_until_nothing_is_held()
    assert fleet.log("begins") == [f"other begins {task}"]
    assert "redelivered" not in fleet.output()


def test_a_task_stays_held_through_a_warm_shutdown(fleet: Fleet) -> None:
    first = fleet.start("first")
    task = fleet.send(fleet.task(4 * TIMEOUT_S))
    fleet.wait_for(f"first begins {task}")
    fleet.start("second")
    first.send_signal(signal.SIGTERM)
    assert first.wait(PATIENCE_S) == 0
    assert fleet.log("begins") == [f"first begins {task}"]
    fleet.wait_until_nothing_is_held()


def test_a_worker_with_a_hanging_main_loop_loses_its_task(fleet: Fleet) -> None:
    fleet.start("first", HANGS_S="60")
    task = fleet.send(fleet.task(60))
    fleet.wait_for(f"first begins {task}")
    fleet.start("second")
    fleet.wait_for(f"second begins {task}")
