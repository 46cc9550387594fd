"""The examples that use the HTTP API, run against a fleet as their users run them."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

from tests.integration.fleets import PATIENCE_S, Fleet

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.parametrize("example", ["http_client.py", "curl_session.sh"])
def test_http_example_downloads_a_lora(
    example: str, fleet: Fleet, job: dict[str, Any], images: Path, tmp_path: Path
) -> None:
    url = f"http://127.0.0.1:{fleet.env['TRAINING_CONSOLE_PORT']}"
    dataset = {"type": "ARCHIVE", "archive": "upload:ID"}
    job["training"]["data_loader"]["dataset"] = dataset
    (tmp_path / "job.json").write_text(json.dumps(job), "utf-8")
    program = [sys.executable] if example.endswith(".py") else ["bash"]
    arguments = ["job.json", str(images), "results"]
    if example.endswith(".py"):
        arguments.insert(0, url)
    done = subprocess.run(
        [*program, str(EXAMPLES / example), *arguments],
        cwd=tmp_path,
        env={
            **os.environ,
            "API": f"{url}/v1",
            "KEY": (fleet.home / "console-key").read_text("utf-8").strip(),
        },
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "downloaded: results/shapes.safetensors" in done.stdout
    with safe_open(tmp_path / "results" / "shapes.safetensors", "np") as file:
        assert list(file.keys())
