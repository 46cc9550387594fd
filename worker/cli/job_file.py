"""Job files: a job as YAML or JSON, its paths taken from the file's folder."""

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import yaml

from tasks.data.uploads import is_upload
from worker.errors import UnreadableJobFileError

_DATASETS = ("dataset", "instance_dataset", "class_dataset")
_PATHS = ("dataset_dir", "jsonl_path", "archive", "hf_cache_dir")
_FILES = (
    "transformer_path",
    "text_encoder_1_path",
    "text_encoder_2_path",
    "initial_embedding_file",
)
_MODELS = ("model", "single_file_config", "vae_model")


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
    _anchor(training, _FILES, folder)
    _anchor(training, _MODELS, folder, only=_is_local)
    _anchor(training.get("base_embeddings"), None, folder)
    loader = training.get("data_loader")
    if isinstance(loader, dict):
        for name in _DATASETS:
            _anchor(loader.get(name), _PATHS, folder, only=_is_no_address)


def _anchor(
    values: Any,
    names: Collection[str] | None,
    folder: Path,
    only: Callable[[str], bool] = lambda _: True,
) -> None:
    """Make the paths under these names absolute; None is all names."""
    for name, value in values.items() if isinstance(values, dict) else ():
        if (names is None or name in names) and isinstance(value, str) and only(value):
            values[name] = str((folder / value).resolve())


def _is_no_address(path: str) -> bool:
    return "://" not in path and not is_upload(path)


def _is_local(model: str) -> bool:
    """Whether a model is surely no Hub id."""
    return model.startswith(".") or model.endswith(".safetensors")
