"""The base of the settings' groups: where values come from, and the types they share."""

import os
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SecretsSettingsSource,
    SettingsConfigDict,
)

PREFIX = "TRAINING_"


def split_list(text: str | None) -> tuple[str, ...]:
    """Return the entries of a list separated by commas."""
    return tuple(part.strip() for part in (text or "").split(",") if part.strip())


def secrets_folder() -> Path | None:
    """Return the folder of ``TRAINING_SECRETS_DIR``; None if it is unset or does not exist."""
    folder = os.environ.get(f"{PREFIX}SECRETS_DIR")
    return Path(folder) if folder and Path(folder).is_dir() else None


def _parse_seconds(value: Any) -> Any:
    """Read a bare number as seconds, and leave anything else to pydantic (ISO 8601: ``P30D``)."""
    try:
        return timedelta(seconds=float(value)) if isinstance(value, str) else value
    except (ValueError, OverflowError):
        return value


Duration = Annotated[timedelta, BeforeValidator(_parse_seconds), Field(gt=timedelta(0))]
Port = Annotated[int, Field(ge=0, le=65535)]


class SettingsGroup(BaseSettings):
    """A group of settings, as immutable values from the environment."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, frozen=True, extra="ignore", use_attribute_docstrings=True
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Return the sources of values, the one with precedence first."""
        folder = secrets_folder()
        files = (SecretsSettingsSource(settings_cls, folder),) if folder else ()
        return init_settings, env_settings, *files
