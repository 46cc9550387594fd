"""What a tenant's job may name: uploads, public addresses, and places that the operator allows."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from tasks.data.download.ssrf import is_allowed
from tasks.data.read_policy import OBJECT_SCHEMES, DeniedError, ReadPolicy
from tasks.data.stored_datasets import dataset_id_in
from tasks.data.uploads import upload_id_in
from tasks.errors import Problem
from tasks.jobs.field_metadata import (
    HUB_ID,
    Location,
    marker_of,
    options_of,
    takes_free_text,
)
from tasks.jobs.job import TrainingJob

_SCHEMES = ("https://", *(f"{scheme}://" for scheme in OBJECT_SCHEMES))


@dataclass(frozen=True)
class TenantPolicy:
    """Decides what tenants' jobs may name.

    Attributes:
        roots: Folders and addresses below which tenants may name anything.
        hosts: Hosts of the operator's network, which only operators' jobs may name.
    """

    roots: tuple[str, ...]
    hosts: frozenset[str]

    def problems(self, job: TrainingJob) -> list[Problem]:
        """Return a problem for everything in a job that its tenant may not name."""
        return [
            Problem(path, problem)
            for option in options_of(job)
            if takes_free_text(option.field.annotation)
            for path, text in _texts(option.value, option.path)
            if (problem := self._problem(marker_of(option.field, Location), text)) is not None
        ]

    def _problem(self, location: Location | None, text: str) -> str | None:
        match location:
            case Location.NONE | Location.HUB_DATASET:
                return None
            case Location.HUB_REPO | Location.BUCKET | Location.SECRET:
                # A secret is looked up among the tenant's own only, and a bucket's names its roots.
                return None
            case Location.DATASET | Location.ARCHIVE:
                is_upload = location is Location.ARCHIVE and bool(
                    upload_id_in(text) or dataset_id_in(text)
                )
                is_permitted = is_upload or self._is_public(text)
                return None if is_permitted else self._refusal("an upload (upload:ID)")
            case Location.BASE_MODEL:
                return None if self._is_model(text) else self._refusal("a Hub id")
            case Location.FILE:
                return None if self._is_below_roots(text) else self._refusal()
            case _:
                # A folder that is written to, or an option whose marker was forgotten.
                return "is set by the operator; omit it"

    def _refusal(self, *others: str) -> str:
        below = f"anything below {', '.join(self.roots)}" if self.roots else None
        address = "a public https:// address" if "an upload (upload:ID)" in others else None
        permitted = " or ".join(filter(None, (*others, address, below)))
        return f"may only be {permitted}" if permitted else "is not open to tenants; omit it"

    def _is_model(self, value: str) -> bool:
        if self._is_below_roots(value):
            return True
        # A text that looks like a Hub id can also be a folder in the workers' working directory.
        return HUB_ID.fullmatch(value) is not None and not Path(value).exists()

    def _is_public(self, value: str) -> bool:
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
        policy = ReadPolicy(roots=self.roots)
        try:
            if "://" not in value:
                # A relative path would depend on the worker's working directory.
                policy.resolved(Path(value))
                return Path(value).is_absolute()
            for form in (value.partition("?")[0], unquote(value)):
                policy.check_url(form)
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
