import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from jsonschema import Draft202012Validator
from referencing import Registry, Resource

from tests.integration.fleets import PATIENCE_S, Fleet
from worker.local.embedded_broker import find_running

ROOT = Path(__file__).parents[2]
CONTRACT = ROOT / "deploy" / "contract"
SCHEMAS = {
    path.name: json.loads(path.read_text("utf-8")) for path in CONTRACT.glob("*.schema.json")
}
REGISTRY: Registry[Any] = Registry().with_resources(
    [(name, Resource.from_contents(schema)) for name, schema in SCHEMAS.items()]
)


@pytest.fixture(scope="module")
def backend(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example, in an environment with Celery and without this package."""
    folder = tmp_path_factory.mktemp("backend")
    for name in ("example_backend.py", "contract.py"):
        shutil.copy(CONTRACT / name, folder)
    env = str(folder / "env")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", env], check=True, timeout=60)
    pip = [sys.executable, "-m", "pip", "--python", env, "install", "-q", "--retries", "1"]
    done = subprocess.run(
        [*pip, "-c", str(ROOT / "deploy" / "constraints.txt"), "celery[redis]"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    if "connection" in done.stderr.lower():
        pytest.skip("no package index can be reached")
    assert done.returncode == 0, done.stderr
    return folder


def run(backend: Path, fleet: Fleet, job: dict[str, Any]) -> subprocess.CompletedProcess[str]:
    url = find_running(fleet.home)
    assert url is not None
    (backend / "job.json").write_text(json.dumps(job))
    env = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    return subprocess.run(
        [backend / "env/bin/python", "example_backend.py", url, "job.json"],
        cwd=backend,
        env=env,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )


def check(name: str, document: Any) -> None:
    Draft202012Validator(SCHEMAS[f"{name}.schema.json"], registry=REGISTRY).validate(document)


def test_a_backend_with_only_celery_runs_a_job(
    backend: Path, fleet: Fleet, job: dict[str, Any]
) -> None:
    done = run(backend, fleet, {**job, "id": "from-a-backend"})
    assert done.returncode == 0, done.stdout + done.stderr
    *lines, last = done.stdout.splitlines()
    steps = [line for line in lines if line.startswith("train: ")]
    assert steps[-1] == "train: 12 of 12 steps"
    assert [line.partition(":")[0] for line in lines].count("stage_finished") == 4
    assert lines[0].startswith("accepted: ")
    assert lines[-1].startswith("ended: ")

    result = json.loads(last.removeprefix("result: "))
    check("result", result)
    assert result["job_id"] == "from-a-backend"
    manifest = json.loads(Path(urlsplit(result["manifest"]).path).read_text("utf-8"))
    check("manifest", manifest)
    *events, _ = fleet.run("watch", "from-a-backend", "--json").documents
    assert len(events) == len(lines)
    for event in events:
        check("event", event)


def test_a_backend_gets_every_problem_of_a_refused_job(
    backend: Path, fleet: Fleet, job: dict[str, Any]
) -> None:
    job["training"] |= {"lora_rank_dim": 0, "lora_rnak_dim": 4}
    done = run(backend, fleet, job)
    assert done.returncode == 1, done.stdout + done.stderr
    assert done.stdout.startswith("invalid_job in submit: the job cannot run as described")
    assert "training.lora_rank_dim: " in done.stdout
    assert "training.lora_rnak_dim: is not an option; did you mean 'lora_rank_dim'?" in done.stdout
    assert done.stderr == ""
