"""Job files: a job as YAML or JSON, its data-set paths taken from the file's folder."""

from pathlib import Path
from typing import Any

import yaml

from tasks.errors import ErrorCode, JobError

_PATHS = ("dataset_dir", "jsonl_path")


class UnreadableJobFileError(JobError):
    """A job file that cannot be read."""

    def __init__(self, path: Path, problem: str) -> None:
        super().__init__(f"cannot read the job file {path}: {problem}", ErrorCode.UNREADABLE_FILE)


def read_job_file(path: Path) -> dict[str, Any]:
    """The document in a job file.

    Raises:
        UnreadableJobFileError: It is missing, no YAML, or no mapping.
    """
    try:
        document = yaml.safe_load(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UnreadableJobFileError(path, str(error)) from error
    except yaml.YAMLError as error:
        raise UnreadableJobFileError(path, f"it is no YAML: {error}") from error
    if not isinstance(document, dict):
        raise UnreadableJobFileError(path, "a job is a mapping with the key 'training'")
    _anchor_paths(document, path.absolute().parent)
    return document


def _anchor_paths(document: dict[str, Any], folder: Path) -> None:
    """Make relative local paths absolute: workers run in other folders than this command."""
    training = document.get("training")
    if not isinstance(training, dict):
        return
    model = training.get("model")
    if isinstance(model, str) and model.startswith("."):
        training["model"] = str((folder / model).resolve())
    loader = training.get("data_loader")
    dataset = loader.get("dataset") if isinstance(loader, dict) else None
    if isinstance(dataset, dict):
        for key in _PATHS:
            if isinstance(dataset.get(key), str):
                dataset[key] = str((folder / dataset[key]).resolve())
