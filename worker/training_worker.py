"""The names of the FLUX integration plan: its snippets, against this fleet.

The configs, the registry and the requirements are those that the fleet itself uses. What differs
from the plan:

- ``process_training_job`` submits a config to the fleet and follows the job to its end; the plan
  imports ``invoke_training`` into the caller's process. Its result has more than the plan's.
- The module is ``worker.training_worker``; the plan has the configs in a module of their own.
- ``get_flux_lora_config`` adds ``save_every_n_steps``, the interval of checkpoints, which a job
  needs. ``process_training_job`` adds it to a config without one.
- The error for an unsupported type also names the supported ones.

    from worker.training_worker import get_flux_lora_config, process_training_job

    config = get_flux_lora_config(max_train_steps=500)
    config["data_loader"]["dataset"] = {
        "type": "IMAGE_CAPTION_DIR_DATASET",
        "dataset_dir": "/data/my-cat",
    }
    process_training_job(config)
"""

from collections.abc import Callable
from copy import deepcopy
from typing import Any

from routing.policy import RESOURCE_REQUIREMENTS
from tasks.client import Client
from tasks.events import Event
from tasks.jobs.presets import (
    SUPPORTED_TRAINING_TYPES,
    get_flux_lora_config,
    get_sdxl_finetune_config,
    get_sdxl_lora_config,
)
from tasks.jobs.presets import get_sdxl_textual_inversion_config as get_sdxl_ti_config
from tasks.settings.settings import load_settings
from worker.cli.reports.follow import ended_record, events_of
from worker.local.embedded_broker import broker_url

__all__ = [
    "RESOURCE_REQUIREMENTS",
    "SUPPORTED_TRAINING_TYPES",
    "get_flux_lora_config",
    "get_sdxl_finetune_config",
    "get_sdxl_lora_config",
    "get_sdxl_ti_config",
    "process_flux_lora_job",
    "process_sdxl_job",
    "process_training_job",
]

# The plan's config has no interval of checkpoints, which a job needs.
_SAVE_EVERY_N_STEPS = 250
_INTERVALS = ("save_every_n_steps", "save_every_n_epochs")
OnEvent = Callable[[Event], None]


def process_training_job(
    job_config: dict[str, Any], *, name: str = "lora", on_event: OnEvent = lambda _: None
) -> dict[str, Any]:
    """Train by a config of any type; returns once the result is published.

    Args:
        job_config: A training config, as a function of ``SUPPORTED_TRAINING_TYPES`` returns it,
            with a dataset.
        name: The result is ``NAME.safetensors``.
        on_event: Called with each event of the job, such as its progress.

    Returns:
        ``status`` is ``completed``; ``type``, ``job_id``, and what the job's result has, such as
        ``published`` and ``sha256``.

    Raises:
        ValueError: The type is not supported.
        SettingsError: A ``TRAINING_`` variable is invalid.
        NoBrokerError: No broker is configured or runs here.
        JobError: The job cannot run, failed, or was cancelled.
    """
    training_type = job_config.get("type")
    if training_type == "FLUX_LORA":
        return process_flux_lora_job(job_config, name=name, on_event=on_event)
    if training_type in list(SUPPORTED_TRAINING_TYPES):
        return process_sdxl_job(job_config, name=name, on_event=on_event)
    raise ValueError(
        f"Unsupported training type: {training_type}; use {', '.join(SUPPORTED_TRAINING_TYPES)}"
    )


def process_flux_lora_job(
    job_config: dict[str, Any], *, name: str = "lora", on_event: OnEvent = lambda _: None
) -> dict[str, Any]:
    """Train a FLUX LoRA; see ``process_training_job``."""
    return _process(job_config, name, on_event)


def process_sdxl_job(
    job_config: dict[str, Any], *, name: str = "lora", on_event: OnEvent = lambda _: None
) -> dict[str, Any]:
    """Train one of the SDXL types; see ``process_training_job``."""
    return _process(job_config, name, on_event)


def _process(job_config: dict[str, Any], name: str, on_event: OnEvent) -> dict[str, Any]:
    training = deepcopy(job_config)
    if all(training.get(interval) is None for interval in _INTERVALS):
        training["save_every_n_steps"] = _SAVE_EVERY_N_STEPS
    settings = load_settings()
    client = Client(settings, broker_url(settings))
    job_id = client.submit({"name": name, "training": training})
    for event in events_of(client, job_id):
        on_event(event)
    result = ended_record(client, job_id).result or {}
    return {"status": "completed", "type": training["type"], "job_id": job_id, **result}
