import json
import urllib.error
import urllib.request
from base64 import b64encode
from pathlib import Path
from typing import Any

from tests.integration.fleets import PATIENCE_S, Fleet, free_port
from tests.waiting import wait_until


def test_flower_shows_workers_queues_and_the_jobs_tasks_to_those_with_the_password(
    tmp_path: Path, job: dict[str, Any]
) -> None:
    port = free_port()

    def ask(path: str, password: str) -> tuple[int, str]:
        url = f"http://127.0.0.1:{port}{path}"
        token = b64encode(f"operator:{password}".encode()).decode()
        request = urllib.request.Request(url, headers={"Authorization": f"Basic {token}"})
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, ""
        except urllib.error.URLError:
            return 0, ""

    with Fleet(tmp_path / "home", "40gb,24gb", TRAINING_FLOWER_PORT=str(port)) as fleet:
        password = (fleet.home / "flower-password").read_text("utf-8").strip()
        wait_until(
            lambda: ask("/api/workers?refresh=1", password)[1].count("active_queues") == 3,
            timeout_s=PATIENCE_S,
            description="Flower knows the workers",
            detail=fleet.log,
        )
        assert ask("/api/workers", "wrong")[0] == 401
        workers = json.loads(ask("/api/workers?refresh=1", password)[1])
        queues = {
            name.partition("@")[0]: [queue["name"] for queue in about["active_queues"]]
            for name, about in workers.items()
        }
        assert queues["cpu"] == ["cpu"]
        assert "gpu.40gb" in queues["gpu-40gb-0"]
        assert "gpu.40gb" not in queues["gpu-24gb-1"]

        job_id = fleet.submit(job, "--watch").documents[0]["job_id"]
        # Events go out a moment after what they tell of.
        wait_until(
            lambda: ask("/api/tasks", password)[1].count('"state": "SUCCESS"') == 4,
            timeout_s=PATIENCE_S,
            description="Flower has heard of the four ends",
            detail=fleet.log,
        )
        tasks = json.loads(ask("/api/tasks", password)[1]).values()
        assert {task["name"] for task in tasks} == {
            "training.prepare",
            "training.cache",
            "training.train",
            "training.publish",
        }
        assert all(job_id in task["args"] for task in tasks)
        assert all(task["state"] == "SUCCESS" for task in tasks)
