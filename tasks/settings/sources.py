"""Where each setting of a process comes from, for people who ask why it has its value."""

import os
import re
from dataclasses import dataclass
from datetime import timedelta
from inspect import get_annotations
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ByteSize, SecretStr

from tasks.settings.base import secrets_folder
from tasks.settings.settings import GROUPS, Settings, variable_of

_HIDDEN = "**********"
_DOCKER_SECRETS = Path("/run/secrets")
_CREDENTIALS = re.compile(r"(?<=://)[^/@\s]+@")


@dataclass(frozen=True)
class SettingSource:
    """A setting.

    Attributes:
        name: Its environment variable.
        value: Its value as text; a secret's is hidden. None if it is unset.
        source: ``default``, ``environment``, ``command line``, or the file that has set it.
    """

    name: str
    value: str | None
    source: str


def setting_sources(settings: Settings) -> list[SettingSource]:
    """Return every setting, in the order of the documentation.

    Args:
        settings: The process's settings.
    """
    folder = secrets_folder()
    return [
        SettingSource(variable_of(name), _text(name, settings), _source(name, settings, folder))
        for group in GROUPS
        for name in get_annotations(group)
    ]


def _source(name: str, settings: Settings, folder: Path | None) -> str:
    variable = variable_of(name)
    # As pydantic-settings reads them.
    if variable.lower() in (known.lower() for known in os.environ):
        return "environment"
    path = None if folder is None else folder / variable
    if path is not None and path.is_file():
        is_docker = _DOCKER_SECRETS in path.absolute().parents
        return f"Docker secret {path}" if is_docker else f"file {path}"
    is_default = getattr(settings, name) == Settings.model_fields[name].default
    return "default" if is_default else "command line"


def _text(name: str, settings: Settings) -> str | None:
    value: Any = getattr(settings, name)
    if isinstance(value, SecretStr):
        return _HIDDEN
    if isinstance(value, BaseModel):
        return os.environ.get(variable_of(name), "set")
    if isinstance(value, timedelta):
        days = value / timedelta(days=1)
        return f"{days:g} d" if days >= 1 else f"{value.total_seconds():g} s"
    if isinstance(value, ByteSize):
        return value.human_readable(decimal=True, separator=" ")
    return None if value is None else _CREDENTIALS.sub(f"{_HIDDEN}@", str(value))
