"""Job files: a job as YAML or JSON, whose relative paths start at the file's folder."""

from collections import Counter
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from tasks.data.uploads import is_upload
from tasks.escaping import quoted
from tasks.jobs.document import (
    MAX_DOCUMENT_BYTES,
    MAX_VALUES,
    DocumentError,
    plain_document,
    too_large,
    too_many,
)
from tasks.jobs.field_metadata import Location, marker_of, models_in
from tasks.jobs.job import TrainingJob
from worker.errors import UnreadableJobFileError

# A Hub id is a name or owner/name, so a path of three segments is a local one.
_MAX_HUB_ID_SLASHES = 1
_MAX_NUMBER = 400
# What PyYAML raises for text that is not YAML, and for values that do not fit their tags.
_NOT_YAML = (yaml.YAMLError, ValueError, LookupError, AttributeError, TypeError)


def read_job_file(path: Path) -> dict[str, Any]:
    """Return the document in a job file, its local paths absolute.

    Raises:
        UnreadableJobFileError: The file is missing, too large, not YAML, or not a mapping.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_DOCUMENT_BYTES + 1)
        if len(data) > MAX_DOCUMENT_BYTES:
            raise too_large()
        document = plain_document(yaml.load(data.decode(), _Loader))
    except OSError as error:
        raise UnreadableJobFileError(path, str(error)) from error
    except DocumentError as error:
        raise UnreadableJobFileError(path, f"it {error}") from error
    except RecursionError as error:
        raise UnreadableJobFileError(path, "it is nested too deeply") from error
    except _NOT_YAML as error:
        raise UnreadableJobFileError(path, f"it is not YAML: {error}") from error
    if not isinstance(document, dict):
        raise UnreadableJobFileError(path, "a job is a mapping with the key 'training'")
    _anchor(document, [TrainingJob], path.absolute().parent)
    return document


class _Loader(yaml.SafeLoader):
    """YAML without what makes a small file large or slow, and without silent loss."""

    values = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Refuse aliases, a few lines of which can hold billions of values, and too many values."""
        self.values += 1
        if self.values > MAX_VALUES:
            raise too_many()
        if self.check_event(yaml.AliasEvent):
            problem = "an alias is not read; write its value here"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=self.peek_event().start_mark)  # type: ignore[no-untyped-call]
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        """Refuse a key that is there twice: PyYAML would drop the first one's value."""
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for key, count in Counter(keys).items():
            if count > 1:
                raise yaml.MarkedYAMLError(
                    problem=f"the key {quoted(key)} occurs {count} times",
                    problem_mark=node.start_mark,
                )
        return super().construct_mapping(node, deep)

    def construct_scalar(self, node: Any) -> Any:
        """Refuse long numbers, of which YAML's base 60 takes quadratic time."""
        if node.tag.endswith((":int", ":float")) and len(node.value) > _MAX_NUMBER:
            raise ValueError(f"the number {quoted(node.value)} is too long")
        return super().construct_scalar(node)


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
