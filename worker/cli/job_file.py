"""Job files: a job as YAML or JSON, whose relative paths start at the file's folder."""

from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from tasks.data.uploads import is_upload
from tasks.jobs.field_metadata import Location, marker_of, models_in
from tasks.jobs.job import TrainingJob
from worker.errors import UnreadableJobFileError

# A Hub id is a name or owner/name, so a path of three segments is a local one.
_MAX_HUB_ID_SLASHES = 1


def read_job_file(path: Path) -> dict[str, Any]:
    """Return the document in a job file, its local paths absolute.

    Raises:
        UnreadableJobFileError: The file is missing, not YAML, or not a mapping.
    """
    try:
        document = yaml.safe_load(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UnreadableJobFileError(path, str(error)) from error
    except yaml.YAMLError as error:
        raise UnreadableJobFileError(path, f"it is not YAML: {error}") from error
    if not isinstance(document, dict):
        raise UnreadableJobFileError(path, "a job is a mapping with the key 'training'")
    _anchor(document, [TrainingJob], path.absolute().parent)
    return document


def _anchor(document: Any, models: list[type[BaseModel]], folder: Path) -> None:
    """Make relative local paths absolute, since workers run in other folders than this command.

    Args:
        document: A mapping that has not been validated; anything else is left to the validation.
        models: The models that may describe it.
        folder: The folder that relative paths start at.
    """
    if not isinstance(document, dict):
        return
    for name, value in document.items():
        fields = [model.model_fields[name] for model in models if name in model.model_fields]
        locations = filter(None, (marker_of(field, Location) for field in fields))
        if (location := next(locations, None)) is not None:
            document[name] = _anchored(value, location, folder)
        else:
            inner = [model for field in fields for model in models_in(field.annotation)]
            _anchor(value, inner, folder)


def _anchored(value: Any, location: Location, folder: Path) -> Any:
    if isinstance(value, dict):
        return {key: _anchored(each, location, folder) for key, each in value.items()}
    if isinstance(value, str) and _is_local_path(value, location, folder):
        return str((folder / value).resolve())
    return value


def _is_local_path(text: str, location: Location, folder: Path) -> bool:
    match location:
        case Location.FILE:
            return True
        case Location.DATASET | Location.ARCHIVE | Location.CACHE_FOLDER:
            return "://" not in text and not is_upload(text)
        case Location.BASE_MODEL:
            return "://" not in text and (
                text.startswith(".")
                or text.endswith(".safetensors")
                or text.count("/") > _MAX_HUB_ID_SLASHES
                or (folder / text).exists()
            )
        case _:
            return False
