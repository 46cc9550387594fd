"""Job files: a job as YAML or JSON, whose relative paths start at the file's folder."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from tasks.data.stored_datasets import is_dataset
from tasks.data.uploads import is_upload
from tasks.errors import InvalidJobError, Problem
from tasks.jobs.document import MAX_DOCUMENT_BYTES, DocumentError, DocumentText, read_document
from tasks.jobs.field_metadata import HUB_ID, Location, marker_of, models_in
from tasks.jobs.job import TrainingJob, parse_job
from worker.errors import UnreadableJobFileError


def load_job(path: Path) -> TrainingJob:
    """Return the job in a file.

    Raises:
        UnreadableJobFileError: The file cannot be read.
        InvalidJobError: It is no valid job; the problems have the lines of their options.
    """
    document = read_job_file(path)
    try:
        return parse_job(document.values)
    except InvalidJobError as error:
        problems = [_with_line(problem, document.lines) for problem in error.problems]
        raise InvalidJobError(problems, more=error.more) from error


def read_job_file(path: Path) -> DocumentText:
    """Return the document in a job file, its local paths absolute.

    Raises:
        UnreadableJobFileError: The file is missing, too large, not YAML, or not a mapping.
    """
    try:
        with path.open("rb") as file:
            document = read_document(file.read(MAX_DOCUMENT_BYTES + 1))
    except OSError as error:
        raise UnreadableJobFileError(path, error.strerror or str(error)) from error
    except DocumentError as error:
        raise UnreadableJobFileError(path, f"it {error}") from error
    if not isinstance(document.values, dict):
        raise UnreadableJobFileError(path, "a job is a mapping with the key 'training'")
    document = _as_job(document)
    _anchor(document.values, [TrainingJob], path.absolute().parent)
    return document


def _as_job(document: DocumentText) -> DocumentText:
    """Return the job of a bare config, as invoke-training's files are: its ``training`` part."""
    values = document.values
    if "training" in values or "type" not in values:
        return document
    training = {key: value for key, value in values.items() if key not in TrainingJob.model_fields}
    job = {key: value for key, value in values.items() if key not in training}
    return DocumentText({**job, "training": training}, document.lines)


def _with_line(problem: Problem, lines: dict[str, int]) -> Problem:
    # In a file without ``training``, its options are at the top.
    for location in (problem.location, problem.location.removeprefix("training.")):
        if location and location in lines:
            return replace(problem, location=f"{problem.location} (line {lines[location]})")
    return problem


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
    if not isinstance(value, str) or not _is_local_path(value, location, folder):
        return value
    try:
        return str((folder / Path(value).expanduser()).resolve())
    except (ValueError, RuntimeError):  # a NUL, which names no file; an unknown user's home
        return value


def _is_local_path(text: str, location: Location, folder: Path) -> bool:
    if not text or "://" in text:
        return False
    match location:
        case Location.FILE | Location.CACHE_FOLDER:
            return True
        case Location.DATASET | Location.ARCHIVE:
            return not (is_upload(text) or is_dataset(text))
        case Location.BASE_MODEL:
            is_file = text.endswith(".safetensors")
            return is_file or not HUB_ID.fullmatch(text) or (folder / text).exists()
        case _:
            return False
