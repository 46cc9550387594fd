"""Trains a FLUX LoRA by one call: submits a config and follows the job to its end.

    python examples/process_training_job.py IMAGES [--model MODEL] [--resolution 768] [--steps 1000]

IMAGES is a folder with captions: ``cat.jpg`` beside ``cat.txt``. Needs a fleet: that of
``training-worker up`` on this machine, or the one whose broker ``TRAINING_BROKER_URL`` names.
"""

import argparse
from pathlib import Path

from tasks.errors import JobError
from tasks.events import Event, Progress, StageStarted
from worker.training_worker import (
    RESOURCE_REQUIREMENTS,
    get_flux_lora_config,
    process_training_job,
)


def main() -> None:
    """Train and print what is published."""
    parser = argparse.ArgumentParser(description="Train a FLUX LoRA.")
    parser.add_argument("images", type=Path)
    parser.add_argument("--model", default="black-forest-labs/FLUX.1-dev")
    parser.add_argument("--resolution", type=int, default=768)
    parser.add_argument("--steps", type=int, default=1000)
    arguments = parser.parse_args()

    print("needs", RESOURCE_REQUIREMENTS["FLUX_LORA"])
    config = get_flux_lora_config(
        model=arguments.model, resolution=arguments.resolution, max_train_steps=arguments.steps
    )
    config["data_loader"]["dataset"] = {
        "type": "IMAGE_CAPTION_DIR_DATASET",
        "dataset_dir": str(arguments.images.absolute()),
    }
    try:
        result = process_training_job(config, on_event=show)
    except JobError as error:
        raise SystemExit(f"{error.code}: {error}") from error
    print(f"{result['status']}: {result['published']}")


def show(event: Event) -> None:
    """Print the start of each stage, and the loss of some steps."""
    if isinstance(event, StageStarted):
        print(event.stage, "on", event.worker)
    elif isinstance(event, Progress) and event.loss is not None:
        print(f"step {event.done} of {event.total}: loss {event.loss:.4f}")


if __name__ == "__main__":
    main()
