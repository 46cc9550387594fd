"""The settings of a process, from ``TRAINING_*`` environment variables or files of these names.

A process reads them once, at its edge, by ``load_settings``, and passes them on.
"""

import os
from collections.abc import Iterator
from difflib import get_close_matches

from pydantic import ValidationError

from tasks.data.read_policy import ReadPolicy
from tasks.errors import Problem, SettingsError
from tasks.settings.base import PREFIX, SettingsGroup, secrets_folder, split_list
from tasks.settings.captions import CaptionSettings
from tasks.settings.groups import (
    ConsoleSettings,
    DataSettings,
    JobSettings,
    ObservabilitySettings,
    StorageSettings,
    TrainerSettings,
    WebhookSettings,
    WorkerSettings,
)

GROUPS: tuple[type[SettingsGroup], ...] = (
    StorageSettings,
    JobSettings,
    DataSettings,
    WorkerSettings,
    TrainerSettings,
    CaptionSettings,
    WebhookSettings,
    ConsoleSettings,
    ObservabilitySettings,
)
"""The groups, in the order of the documentation."""


class Settings(
    ConsoleSettings,
    StorageSettings,
    JobSettings,
    DataSettings,
    WorkerSettings,
    TrainerSettings,
    CaptionSettings,
    WebhookSettings,
    ObservabilitySettings,
):
    """All settings of a process. A function that needs few of them takes their group."""

    def data_access(self) -> ReadPolicy:
        """Return what datasets may be read."""
        roots = split_list(self.data_roots)
        return ReadPolicy(
            roots=roots if roots or self.broker_url else None,
            hosts=frozenset(split_list(self.data_hosts)),
            max_bytes=self.data_max_bytes,
        )


def load_settings() -> Settings:
    """Read this process's settings.

    Raises:
        SettingsError: A value is invalid, or a variable names no setting; with all problems.
    """
    problems = [Problem(name, _unknown(name)) for name in _unknown_variables()]
    try:
        settings = Settings()
    except ValidationError as error:
        raise SettingsError([*_invalid_values(error), *problems]) from error
    if problems:
        raise SettingsError(problems)
    return settings


def variable_of(field: str) -> str:
    """Return the environment variable of a field of ``Settings``."""
    alias = Settings.model_fields[field].validation_alias
    return alias if isinstance(alias, str) else f"{PREFIX}{field.upper()}"


def _unknown_variables() -> list[str]:
    folder = secrets_folder()
    files = [path.name for path in folder.iterdir()] if folder else []
    known = {variable_of(field) for field in Settings.model_fields}
    return sorted(
        name for name in {*os.environ, *files} if name.startswith(PREFIX) and name not in known
    )


def _unknown(name: str) -> str:
    field = name.removeprefix(PREFIX).lower()
    similar = get_close_matches(field, Settings.model_fields, n=1)
    hint = f"; did you mean {variable_of(similar[0])}?" if similar else ""
    return f"no such setting{hint}"


def _invalid_values(error: ValidationError) -> Iterator[Problem]:
    for detail in error.errors(include_url=False, include_input=False):
        field = str(detail["loc"][0])
        name = variable_of(field) if field in Settings.model_fields else field
        yield Problem(name, detail["msg"].removeprefix("Value error, "))
