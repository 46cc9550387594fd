"""What a tenant's job may name: its uploads, what is public, and what the operator opens to it."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from tasks.data.download.ssrf import is_allowed
from tasks.data.read_policy import CLOUD_SCHEMES, DeniedError, ReadPolicy
from tasks.data.uploads import upload_id_in
from tasks.errors import Problem
from tasks.jobs.field_metadata import Location, marker_of, options_of, takes_free_text
from tasks.jobs.job import TrainingJob

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?", re.ASCII)
_SCHEMES = ("https://", *(f"{scheme}://" for scheme in CLOUD_SCHEMES))


@dataclass(frozen=True)
class TenantPolicy:
    """A tenant's.

    Attributes:
        roots: What lies below these may be named, too.
        hosts: Hosts of the operator's own network that jobs of others than tenants may ask.
    """

    roots: tuple[str, ...]
    hosts: frozenset[str]

    def problems(self, job: TrainingJob) -> list[Problem]:
        """Everything in a job that its tenant may not name."""
        return [
            Problem(path, problem)
            for option in options_of(job)
            if takes_free_text(option.field.annotation)
            for path, text in _texts(option.value, option.path)
            if (problem := self._problem(marker_of(option.field, Location), text)) is not None
        ]

    def _problem(self, location: Location | None, text: str) -> str | None:
        match location:
            case Location.NONE:
                return None
            case Location.DATASET | Location.ARCHIVE:
                is_upload = location is Location.ARCHIVE and upload_id_in(text) is not None
                is_allowed = is_upload or self._is_open(text)
                return None if is_allowed else self._allowed("an upload (upload:ID)")
            case Location.BASE_MODEL:
                return None if self._is_model(text) else self._allowed("a Hub id")
            case Location.FILE:
                return None if self._is_below_roots(text) else self._allowed()
            case Location.HUB_DATASET:
                return None if _HUB_ID.fullmatch(text) else "is not a Hub id"
            case _:
                # A folder that is written to, or an option whose marker was forgotten.
                return "is the operator's to decide; leave it out"

    def _allowed(self, *others: str) -> str:
        below = f"what lies below {', '.join(self.roots)}" if self.roots else None
        address = "a public https:// address" if "an upload (upload:ID)" in others else None
        may = " or ".join(filter(None, (*others, address, below)))
        return f"may only be {may}" if may else "is not open to tenants; leave it out"

    def _is_model(self, value: str) -> bool:
        if self._is_below_roots(value):
            return True
        # What looks like a Hub id may be a folder beside the one that workers were started in.
        return _HUB_ID.fullmatch(value) is not None and not Path(value).exists()

    def _is_open(self, value: str) -> bool:
        if self._is_below_roots(value):
            return True
        if not value.startswith("https://"):
            return False
        try:
            parts = urlsplit(value)
            host, port = parts.hostname or "", parts.port or 443
        except ValueError:
            return False
        return bool(host) and not is_allowed(host, port, self.hosts)

    def _is_below_roots(self, value: str) -> bool:
        rules = ReadPolicy(roots=self.roots)
        try:
            if "://" not in value:
                # A relative path would be another one wherever a worker was started.
                rules.check_path(Path(value))
                return Path(value).is_absolute()
            for form in (value.partition("?")[0], unquote(value)):
                rules.check_cloud(form)
        except (DeniedError, OSError, ValueError, RuntimeError):
            return False
        return value.startswith(_SCHEMES)


def _texts(value: Any, path: str) -> Iterator[tuple[str, str]]:
    """Yield every text in an option's value, with its path."""
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, dict):
        for key, each in value.items():
            yield from _texts(each, f"{path}.{key}")
    elif isinstance(value, tuple | list):
        for each in value:
            yield from _texts(each, path)
