import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

from routing.classes import GIB
from tasks.events import Note, TrainDone
from tasks.stages.submit import submit
from tasks.state.artifacts import JobArtifacts
from tasks.state.job_store import JobStore


def status(job_id: str, *options: str, home: Path, broker_url: str) -> str:
    env = {k: v for k, v in os.environ.items() if not k.startswith("TRAINING_")}
    ran = subprocess.run(
        [sys.executable, "-P", "-m", "worker", "status", job_id, *options],
        env={**env, "TRAINING_HOME": str(home), "TRAINING_BROKER_URL": broker_url},
        capture_output=True,
        text=True,
        check=True,
    )
    return ran.stdout


def test_status_shows_estimated_and_peak_memory(
    state: JobStore, job_document: dict[str, Any], tmp_path: Path, broker_url: str
) -> None:
    shown = partial(status, home=tmp_path, broker_url=broker_url)
    job_id = submit(job_document, state, "result").job_id
    estimate = state.get(job_id).estimate
    assert f"GPU memory: {estimate.needed_gib:.1f} GiB estimated\n" in shown(job_id)
    _, attempt, _ = state.begin(job_id, "prepare", worker="w", queue="q", tag="t")
    done = TrainDone(steps=1, final_loss=1, peak_memory_bytes=30 * GIB)
    note = Note(level="info", message="done")
    state.write(job_id, attempt, [note], JobArtifacts(trained=done))
    assert " GiB estimated, 30.0 GiB at its peak\n" in shown(job_id)
    document = json.loads(shown(job_id, "--json"))
    assert document["gpu_memory"] == {
        "estimated_bytes": estimate.needed_bytes,
        "peak_bytes": 30 * GIB,
    }
    assert document["estimate"]["weights_gib"] == estimate.weights_gib
