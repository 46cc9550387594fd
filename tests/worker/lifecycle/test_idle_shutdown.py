import os
import subprocess
import sys
from pathlib import Path

from celery import Celery
from redis import Redis

from tests.waiting import wait_until


def test_a_worker_with_a_message_is_not_idle(
    broker_url: str, redis_client: Redis, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    worker = [
        sys.executable,
        "-m",
        "tests.worker.kombu_redis.leased_worker",
        broker_url,
        str(log),
        "one",
        "60",
    ]
    app = Celery(broker=broker_url, set_as_current=False)
    app.send_task("work", args=[3], queue="cpu", task_id="longer-than-it-may-be-idle")
    ended = subprocess.run(worker, env={**os.environ, "IDLE_S": "1"}, check=False, timeout=50)
    assert ended.returncode == 0
    assert log.read_text().splitlines()[-1] == "one ends longer-than-it-may-be-idle"
    wait_until(
        lambda: not redis_client.exists("unacked", "cpu"),
        timeout_s=5,
        description="the message is acknowledged",
    )
