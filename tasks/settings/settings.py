"""The settings of a process, from ``TRAINING_*`` environment variables or files of these names.

A process reads them once, at its edge, by ``load_settings``, and passes them on.
"""

import os
import re
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

DEPLOYMENT_VARIABLES = frozenset(
    {"TRAINING_IMAGE", "TRAINING_TRAINER_IMAGE", "TRAINING_DATASETS"}
    | {f"TRAINING_GPU_{size}GB" for size in (8, 16, 24, 40, 80)}
)
"""Variables of ``deploy/compose.yaml`` itself. A shell that has them may run our commands, too."""

# What Kubernetes adds to the environment of each pod, for each Service of its namespace.
_LINK_NAME = re.compile(
    r"_SERVICE_(HOST|PORT(_\w+)?)$|_PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?$"
)
_LINK_VALUE = re.compile(r"(tcp|udp|sctp)://")
_LINK = (
    "Kubernetes has set it to the address of a Service; set enableServiceLinks: false in the pod"
)


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
    known = {variable_of(field) for field in Settings.model_fields} | DEPLOYMENT_VARIABLES
    return sorted(
        name for name in {*os.environ, *files} if name.startswith(PREFIX) and name not in known
    )


def _unknown(name: str) -> str:
    if _LINK_NAME.search(name) or _is_service_link(name):
        return _LINK
    field = name.removeprefix(PREFIX).lower()
    similar = get_close_matches(field, Settings.model_fields, n=1)
    hint = f"; did you mean {variable_of(similar[0])}?" if similar else ""
    return f"no such setting{hint}"


def _invalid_values(error: ValidationError) -> Iterator[Problem]:
    for detail in error.errors(include_url=False, include_input=False):
        field = str(detail["loc"][0])
        name = variable_of(field) if field in Settings.model_fields else field
        message = detail["msg"].removeprefix("Value error, ")
        yield Problem(name, _LINK if _is_service_link(name) else message)


def _is_service_link(name: str) -> bool:
    return _LINK_VALUE.match(os.environ.get(name, "")) is not None
