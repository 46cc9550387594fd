"""What a job has published, and its validation images: by the names its own record gives them."""

import json
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from anyio import to_thread

from console.errors import NotFoundError
from console.views import FilesView, FileView, Sample
from tasks.events import Artifact
from tasks.stages.train import validations_of
from tasks.state.record import JobRecord
from tasks.store import Store

_PIECE = 2**20
# validation-STEP-PROMPT-NUMBER.png, both numbers from 1 on.
_IMAGE = re.compile(r"validation-\d+-(\d+)-\d+\.png", re.ASCII)


@dataclass(frozen=True)
class OpenFile:
    """A file in the store, to read any part of.

    Attributes:
        name: Its name.
        size: Its length in bytes.
        sha256: Its digest, in hex.
    """

    name: str
    size: int
    sha256: str
    _store: Store
    _key: str

    async def read(self, start: int = 0, end: int | None = None) -> AsyncIterator[bytes]:
        """Its bytes from ``start`` up to ``end``, piece by piece.

        Raises:
            StoreError: They cannot be read.
        """
        end = self.size if end is None else min(end, self.size)
        while start < end:
            stop = min(start + _PIECE, end)
            yield await to_thread.run_sync(self._store.get_range, self._key, start, stop)
            start = stop


class JobFiles:
    """The files of jobs.

    Args:
        store: Where they are.
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    def published(self, record: JobRecord) -> FilesView:
        """What a job has published."""
        manifest = self._manifest(record)
        return FilesView(
            files=tuple(
                FileView(name=it.name, size=it.size, sha256=it.sha256) for it in _files_in(manifest)
            ),
            manifest=manifest,
        )

    def open(self, record: JobRecord, name: str) -> OpenFile:
        """A published file.

        Raises:
            NotFoundError: The job has published none of this name.
        """
        return self._open(record, name, _files_in(self._manifest(record)))

    def samples(self, record: JobRecord) -> tuple[Sample, ...]:
        """A job's validation images so far, by step, prompt and number."""
        prompts = record.job.training.validation_prompts
        return tuple(
            Sample(step=made.step, name=image.name, prompt=_prompt(prompts, image), size=image.size)
            for made in validations_of(record.refs)
            for image in made.images
        )

    def open_sample(self, record: JobRecord, name: str) -> OpenFile:
        """A validation image.

        Raises:
            NotFoundError: The job has none of this name.
        """
        images = [image for made in validations_of(record.refs) for image in made.images]
        return self._open(record, name, images)

    def _open(self, record: JobRecord, name: str, files: list[Artifact]) -> OpenFile:
        for file in files:
            if file.name == name:
                return OpenFile(name, file.size, file.sha256, self._store, file.key)
        raise NotFoundError(f"job {record.id} has no such file")

    def _manifest(self, record: JobRecord) -> dict[str, Any] | None:
        key = record.refs.get("manifest")
        if key is None:
            return None
        manifest: dict[str, Any] = json.loads(self._store.get(key))
        return manifest


def _files_in(manifest: dict[str, Any] | None) -> list[Artifact]:
    listed = [] if manifest is None else manifest["files"]
    return [Artifact.model_validate(file) for file in listed]


def _prompt(prompts: tuple[str, ...], image: Artifact) -> str | None:
    """Whose image this is; None where its name does not tell."""
    match = _IMAGE.fullmatch(image.name)
    number = 0 if match is None else int(match[1])
    return prompts[number - 1] if 1 <= number <= len(prompts) else None
