"""The examples that use the HTTP API, run against a fleet as their users run them."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

from tests.integration.fleets import PATIENCE_S, Fleet
from tests.node_tools import NodeFolder

ROOT = Path(__file__).parents[2]
CONTRACT, EXAMPLES = ROOT / "deploy" / "contract", ROOT / "examples"


def run(fleet: Fleet, folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "PYTHONPATH": "",
        "API": f"{fleet.console}/v1",
        "KEY": (fleet.home / "console-key").read_text("utf-8").strip(),
    }
    return subprocess.run(
        command,
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )


def check_results(done: subprocess.CompletedProcess[str], folder: Path) -> None:
    assert done.returncode == 0, done.stdout + done.stderr
    assert "downloaded: results/shapes.safetensors" in done.stdout
    with safe_open(folder / "results" / "shapes.safetensors", "np") as file:
        assert list(file.keys())


def write_job(job: dict[str, Any], folder: Path) -> None:
    (folder / "job.json").write_text(json.dumps(job), "utf-8")


def test_a_curl_session_downloads_a_lora(
    fleet: Fleet, job: dict[str, Any], images: Path, tmp_path: Path
) -> None:
    job["training"]["data_loader"]["dataset"] = {"type": "ARCHIVE", "archive": "upload:ID"}
    write_job(job, tmp_path)
    script = str(EXAMPLES / "curl_session.sh")
    check_results(
        run(fleet, tmp_path, "bash", script, "job.json", str(images), "results"), tmp_path
    )


@pytest.fixture(params=["backend.py", "backend.ts"])
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, list[str]]:
    """A folder with an example and what it needs of the contract, and its command."""
    if request.param == "backend.py":
        for path in (EXAMPLES / "backend.py", CONTRACT / "client.py"):
            shutil.copy(path, tmp_path)
        return tmp_path, [sys.executable, "backend.py"]
    node: NodeFolder = request.getfixturevalue("node")
    for path in (EXAMPLES / "backend.ts", CONTRACT / "client.ts", CONTRACT / "training-worker.ts"):
        shutil.copy(path, node.path)
    node.compile("backend.ts")
    return node.path, ["node", "backend.js"]


def test_a_backend_trains_an_order_once(
    backend: tuple[Path, list[str]], fleet: Fleet, job: dict[str, Any], images: Path
) -> None:
    folder, command = backend
    del job["training"]["data_loader"]["dataset"]
    with zipfile.ZipFile(folder / "images.zip", "w") as archive:
        for path in sorted(images.iterdir()):
            archive.write(path, path.name)
    order = f"order-{command[0].rpartition('/')[2]}"
    sent = [*command, fleet.console, order, "job.json", "images.zip", "results"]

    write_job({**job, "priority": 10}, folder)
    refused = run(fleet, folder, *sent)
    assert refused.returncode == 1, refused.stdout + refused.stderr
    assert refused.stderr.startswith("priority: must be at most 9"), refused.stderr

    write_job(job, folder)
    check_results(run(fleet, folder, *sent), folder)
    shutil.rmtree(folder / "results")
    again = run(fleet, folder, *sent)
    check_results(again, folder)
    assert again.stdout.count("train: 12 of 12 steps") == 1
