"""Small jobs and requests as documents, without torch."""

from typing import Any

from tasks.jobs.job import parse_job
from tasks.stages.trainer_protocol import TrainerRequest

_DATASET = {"type": "IMAGE_CAPTION_DIR_DATASET", "dataset_dir": "/images"}
_COMMON: dict[str, Any] = {
    "seed": 7,
    "max_train_steps": 4,
    "save_every_n_steps": 2,
}
_SD_LOADER = {"type": "IMAGE_CAPTION_SD_DATA_LOADER", "dataset": _DATASET}
SDXL_OPTIONS: dict[str, dict[str, Any]] = {
    "SDXL_LORA": {"type": "SDXL_LORA", **_COMMON, "data_loader": _SD_LOADER},
    "SDXL_FINETUNE": {"type": "SDXL_FINETUNE", **_COMMON, "data_loader": _SD_LOADER},
    "SDXL_TEXTUAL_INVERSION": {
        "type": "SDXL_TEXTUAL_INVERSION",
        **_COMMON,
        "placeholder_token": "<thing>",
        "initial_phrase": "red cat",
        "data_loader": {
            "type": "TEXTUAL_INVERSION_SD_DATA_LOADER",
            "caption_preset": "object",
            "dataset": {"type": "IMAGE_DIR_DATASET", "dataset_dir": "/images"},
        },
    },
}
FLUX_OPTIONS: dict[str, Any] = {
    "type": "FLUX_LORA",
    **_COMMON,
    "weight_dtype": "bfloat16",
    "data_loader": {"type": "IMAGE_CAPTION_FLUX_DATA_LOADER", "dataset": _DATASET},
}
OPTIONS = {"FLUX_LORA": FLUX_OPTIONS, **SDXL_OPTIONS}


def request_for(training: dict[str, Any], **fields: Any) -> TrainerRequest:
    """Return a ``train`` request of these options."""
    values: dict[str, Any] = {
        "stage": "train",
        "job_id": "job",
        "start_id": "1",
        "name": "lora",
        "training": parse_job({"training": training}).training,
        "dataset_key": "datasets/abc/data.json",
        "store_url": "file:///store",
        "scratch_dir": "/scratch/job-1",
        "device": "cpu",
    }
    return TrainerRequest(**{**values, **fields})


def flux_request(**fields: Any) -> TrainerRequest:
    """Return a ``train`` request of a small FLUX LoRA."""
    return request_for(FLUX_OPTIONS, **fields)
