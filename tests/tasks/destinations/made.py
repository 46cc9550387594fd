"""Results to copy, as a job has published them."""

import hashlib
from pathlib import Path
from typing import Any

from tasks.destinations.results import Results
from tasks.events import Artifact
from tasks.jobs.job import TrainingJob, parse_job
from tasks.store import Store

FILES = {
    "lamp.safetensors": b"weights of step 20",
    "lamp-step00000010.safetensors": b"weights of step 10",
    "lamp.json": b"{}",
    "validation/validation-000010-1-1.png": b"first",
    "validation/validation-000020-1-1.png": b"image of a lamp",
    "validation/validation-000020-1-2.png": b"another",
    "validation/validation-000020-2-1.png": b"image of two",
}


def job_of(document: dict[str, Any], **fields: Any) -> TrainingJob:
    training = document["training"]
    training |= {
        "model": "black-forest-labs/FLUX.1-dev",
        "validation_prompts": ["a lamp", "two lamps"],
        "validate_every_n_steps": 10,
    }
    training["data_loader"]["caption_prefix"] = "ohwx lamp"
    return parse_job({**document, "id": "j1", "tenant": "acme", **fields})


def results_of(job: TrainingJob, folder: Path, files: dict[str, bytes] | None = None) -> Results:
    store = Store((folder / "store").as_uri())
    made = []
    for name, data in (FILES if files is None else files).items():
        key, digest = f"outputs/j1/{name}", hashlib.sha256(data).hexdigest()
        store.put(key, data)
        made.append(Artifact(name=name, key=key, sha256=digest, size=len(data)))
    store.put("outputs/j1/manifest.json", b'{"manifest_version": 1}')
    return Results("j1", job, tuple(made), "outputs/j1/manifest.json", store, folder / "scratch")
