"""A backend: trains a LoRA for an order, once however often the order is sent.

    KEY=twk_... python backend.py http://127.0.0.1:8080 ORDER job.json images.zip results

``job.json`` is a job without a dataset: ``images.zip`` is uploaded and named in it. It needs
``client.py`` of ``deploy/contract`` beside it, and nothing else.
"""

import json
import os
import sys
from pathlib import Path

from client import ApiError, Client, JobFailedError


def train(client: Client, order: str, job: dict, images: Path, results: Path) -> None:
    """Train on an archive of images, and download what the job publishes."""
    if not client.knows(order):
        dataset = {"type": "ARCHIVE", "archive": f"upload:{client.upload(images)}"}
        job["training"].setdefault("data_loader", {})["dataset"] = dataset
        if problem := client.preview(job)["error"]:
            sys.exit(problem["message"])
        client.submit({**job, "id": order})
    for event in client.follow(order):
        if event["kind"] == "progress":
            print(f"{event['stage']}: {event['done']} of {event['total']} {event['unit']}")
    client.result(order)
    for path in client.download(order, results):
        print(f"downloaded: {path}")


if __name__ == "__main__":
    url, order, job_path, images, results = sys.argv[1:]
    job = json.loads(Path(job_path).read_text("utf-8"))
    try:
        train(Client(url, os.environ["KEY"]), order, job, Path(images), Path(results))
    except ApiError as error:
        sys.exit("\n".join(f"{it.location}: {it.message}; {it.remedy}" for it in error.problems))
    except JobFailedError as error:
        sys.exit(f"{error.code}: {error}")
