"""Flower's buttons and ``celery control``, on a worker process of the fleet."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import psutil
import pytest
from celery import Celery
from celery.worker.control import Panel

from tests.waiting import wait_until
from worker.supervision.process import spawn

COMMANDS: dict[str, dict[str, object]] = {
    "pool_grow": {"n": 1},
    "pool_shrink": {"n": 1},
    "pool_restart": {},
    "autoscale": {"max": 3, "min": 1},
    "add_consumer": {"queue": "gpu.40gb"},
    "cancel_consumer": {"queue": "gpu.24gb"},
    "time_limit": {"task_name": "training.train", "hard": 1, "soft": 1},
    "rate_limit": {"task_name": "training.train", "rate_limit": "1/h"},
    "revoke": {"task_id": "a", "terminate": True},
    "revoke_by_stamped_headers": {"headers": {"a": "b"}},
    "terminate": {"task_id": "a", "signal": "KILL"},
    "election": {"id": "a", "topic": "b"},
    "objgraph": {},
}
HARMLESS = {"enable_events", "disable_events", "heartbeat", "shutdown", "drain"}


class Worker:
    """A worker that serves 24 GB, and its remote control."""

    def __init__(self, broker_url: str, home: Path, **more_env: str) -> None:
        self.ready = home / "ready"
        command = [sys.executable, "-P", "-m", "worker", "worker", "--name", "small"]
        command += ["--gpu", "EMULATED-24gb-0", "--ready-file", str(self.ready)]
        env = {k: v for k, v in os.environ.items() if not k.startswith("TRAINING_")}
        env |= {
            "TRAINING_HOME": str(home),
            "TRAINING_BROKER_URL": broker_url,
            "TRAINING_GPUS": "24gb",
            **more_env,
        }
        self.log = home / "log"
        with self.log.open("wb") as log:
            self.process = spawn(command, env=env, stdout=log, stderr=subprocess.STDOUT)
        self.app = Celery(broker=broker_url, set_as_current=False)

    def __enter__(self) -> Self:
        wait_until(
            self.ready.exists, timeout_s=60, description="it is ready", detail=self.log.read_text
        )
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()

    def command(self, name: str, **arguments: object) -> dict[str, str]:
        [answers] = self.app.control.broadcast(name, arguments, reply=True, timeout=10, limit=1)
        [answer] = answers.values()
        assert isinstance(answer, dict)
        return answer

    def state(self) -> tuple[object, object]:
        """The queues it consumes, and its processes."""
        inspect, replies = self.app.control.inspect(timeout=10, limit=1), dict[str, Any]()

        def has_replied() -> bool:
            replies.update(inspect.active_queues() or {})
            return bool(replies)

        wait_until(has_replied, timeout_s=60, description="it replies", detail=self.log.read_text)
        [queues] = replies.values()
        children = psutil.Process(self.process.pid).children()
        return sorted(queue["name"] for queue in queues), [child.pid for child in children]


@pytest.fixture
def worker(broker_url: str, tmp_path: Path) -> Iterator[Worker]:
    with Worker(broker_url, tmp_path) as worker:
        yield worker


def test_commands_that_break_promises_are_refused(worker: Worker) -> None:
    before = worker.state()
    for name, arguments in COMMANDS.items():
        assert "is refused: " in worker.command(name, **arguments)["error"], name
    assert worker.state() == before
    assert before[0] == ["gpu.16gb", "gpu.24gb", "gpu.8gb"]


def test_every_other_command_is_known_to_be_harmless() -> None:
    control = {name for name, command in Panel.meta.items() if command.type == "control"}
    assert control <= COMMANDS.keys() | HARMLESS


def test_shutdown_drains(worker: Worker) -> None:
    assert worker.command("shutdown") == {"ok": "draining"}
    assert worker.process.wait(30) == 0
