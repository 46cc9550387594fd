"""What a tenant's job may name: its uploads, what is public, and what the operator opens to it."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from pydantic import BaseModel

from tasks.data.download.ssrf import is_allowed
from tasks.data.read_policy import CLOUD_SCHEMES, DeniedError, ReadPolicy
from tasks.data.uploads import upload_id_in
from tasks.errors import Problem
from tasks.jobs.job import TrainingJob

PLACES = frozenset({"dataset_dir", "jsonl_path", "archive"})
"""Fields that say where a dataset is."""
MODELS = frozenset({"model", "single_file_config", "vae_model"})
"""Fields that name a base model: a Hub id, a folder or a file."""
FILES = frozenset(
    {
        "transformer_path",
        "text_encoder_1_path",
        "text_encoder_2_path",
        "initial_embedding_file",
        "base_embeddings",
    }
)
"""Fields that name files; of a mapping, its values."""
HUB_NAMES = frozenset({"dataset_name"})
"""Fields that hold a Hub id and nothing else."""
NOT_THEIRS = frozenset({"base_output_dir", "hf_cache_dir"})
"""Fields that say where something is written."""

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
            for path, name, value in _texts(job.training, "training")
            if (problem := self._problem(name, value)) is not None
        ]

    def _problem(self, name: str, value: str) -> str | None:
        if name in NOT_THEIRS:
            return "is the operator's to decide; leave it out"
        if name in HUB_NAMES:
            return None if _HUB_ID.fullmatch(value) else "is no Hub id"
        if name in PLACES:
            known = name == "archive" and upload_id_in(value) is not None
            return None if known or self._is_open(value) else self._told("an upload (upload:ID)")
        if name in MODELS:
            return None if self._is_model(value) else self._told("a Hub id")
        if name in FILES:
            return None if self._is_below_roots(value) else self._told()
        return None

    def _told(self, *others: str) -> str:
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


def _texts(model: BaseModel, path: str) -> Iterator[tuple[str, str, str]]:
    """Every text of a config: its dotted path, its field's name, and itself."""
    for name in type(model).model_fields:
        value, where = getattr(model, name), f"{path}.{name}"
        if isinstance(value, BaseModel):
            yield from _texts(value, where)
        elif isinstance(value, str):
            yield where, name, value
        elif isinstance(value, dict):
            yield from ((f"{where}.{key}", name, str(it)) for key, it in value.items())
