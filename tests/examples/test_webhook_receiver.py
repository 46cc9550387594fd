"""The example of a receiver, run as its users run it, gets what a worker sends."""

import json
import os
import subprocess
import sys
import time
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.fleets import free_port
from tests.waiting import wait_until
from worker.maintenance.webhook_sender import WebhookSender

EXAMPLE = Path(__file__).parents[2] / "examples" / "webhook_receiver.py"
OLD, NEW, STRANGER = (f"whsec_{b64encode(bytes([n]) * 24).decode()}" for n in (1, 2, 3))


@pytest.fixture
def receiver(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """The address of the running example, and its output."""
    port, output = free_port(), tmp_path / "output"
    with output.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "-P", str(EXAMPLE), str(port)],
            env={**os.environ, "WEBHOOK_SECRETS": f"{OLD},{NEW}"},
            stdout=file,
        )
    url = f"http://127.0.0.1:{port}/"
    try:
        wait_until(
            lambda: (
                WebhookSender().send(url, "m", time.time(), "{}", [STRANGER]).problem
                == "status 401"
            ),
            timeout_s=20,
            description="the example answers",
        )
        yield url, output
    finally:
        process.kill()
        process.wait()


def body(kind: str, sequence: int) -> str:
    data = {"job_id": "cat", "name": "cat", "sequence": sequence, "event": {"kind": "progress"}}
    return json.dumps({"type": kind, "timestamp": "2026-01-01T00:00:00Z", "data": data})


def test_the_example_handles_each_signed_event_once(receiver: tuple[str, Path]) -> None:
    url, output = receiver
    sender, now = WebhookSender(), time.time()
    for secrets in ([OLD], [NEW], [STRANGER, NEW]):
        assert sender.send(url, "evt_1", now, body("job.started", 1), secrets).problem is None
    assert sender.send(url, "evt_3", now, body("job.progress", 3), [NEW]).problem is None
    assert sender.send(url, "evt_2", now, body("job.progress", 2), [NEW]).problem is None
    for message_id, secret, at in (("evt_4", STRANGER, now), ("evt_5", NEW, now - 3600)):
        answer = sender.send(url, message_id, at, body("job.failed", 4), [secret])
        assert answer.problem == "status 401"
    assert output.read_text().splitlines() == ["job.started cat ", "job.progress cat "]
