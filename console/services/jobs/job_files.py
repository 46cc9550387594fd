"""Published files and validation images of jobs, opened only by the names in a job's record."""

import io
import json
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from PIL import Image

from console.errors import NotFoundError
from console.services.jobs.jobs import Jobs
from console.services.threads import in_thread
from console.views import FilesView, FileView, SampleView
from tasks.access.api_keys import Caller
from tasks.events import Artifact
from tasks.state.record import JobRecord
from tasks.store import Store

_CHUNK_BYTES = 2**20
_THUMBNAIL_SIDE = 192
# Far above a validation image: the trainer makes them of the training resolution.
_MAX_IMAGE_BYTES, _MAX_PIXELS = 64 * 2**20, 64_000_000
# validation-STEP-PROMPT-NUMBER.png; prompts and numbers count from 1.
_IMAGE = re.compile(r"validation-\d+-(\d+)-\d+\.png", re.ASCII)


@dataclass(frozen=True)
class OpenFile:
    """File in the store, of which any part can be read.

    Attributes:
        name: Its name.
        size: Its length in bytes.
        sha256: Its digest, in hex.
        key: Its key in the store.
    """

    name: str
    size: int
    sha256: str
    _store: Store
    key: str

    async def read(self, start: int = 0, end: int | None = None) -> AsyncIterator[bytes]:
        """Yield the bytes from ``start`` up to ``end`` in chunks.

        Raises:
            StoreError: The file cannot be read.
        """
        end = self.size if end is None else min(end, self.size)
        while start < end:
            stop = min(start + _CHUNK_BYTES, end)
            yield await in_thread(self._store.get_range)(self.key, start, stop)
            start = stop


class JobFiles:
    """Files of jobs; a caller opens those of the jobs that it sees.

    Every method raises ``UnknownJobError`` when the caller sees no job of this id.

    Args:
        store: The store that holds the files.
        jobs: The jobs service.
    """

    def __init__(self, store: Store, jobs: Jobs) -> None:
        self._store, self._jobs = store, jobs

    @in_thread
    def published(self, caller: Caller, job_id: str) -> FilesView:
        """Return the files that a job has published."""
        record = self._jobs.record(caller, job_id)
        manifest, steps = self._manifest(record), _steps_of_files(record)
        return FilesView(
            files=tuple(
                FileView(
                    name=file.name, size=file.size, sha256=file.sha256, step=steps.get(file.name)
                )
                for file in _files_in(manifest)
            ),
            manifest=manifest,
        )

    @in_thread
    def open(self, caller: Caller, job_id: str, name: str) -> OpenFile:
        """Open a published file.

        Raises:
            NotFoundError: The job has published no file of this name.
        """
        record = self._jobs.record(caller, job_id)
        return self._open(record, name, _files_in(self._manifest(record)))

    def record_with(self, caller: Caller, job_id: str, name: str) -> JobRecord:
        """Return the record of a job that has published a file of this name.

        Raises:
            NotFoundError: It has not.
        """
        record = self._jobs.record(caller, job_id)
        self._open(record, name, _files_in(self._manifest(record)))
        return record

    @in_thread
    def samples(self, caller: Caller, job_id: str) -> tuple[SampleView, ...]:
        """Return a job's validation images so far, by step, prompt and number."""
        record = self._jobs.record(caller, job_id)
        prompts = record.job.training.sample_prompts
        return tuple(
            SampleView(
                step=validation.step,
                name=image.name,
                prompt=_prompt(prompts, image),
                size=image.size,
            )
            for validation in record.artifacts.validations
            for image in validation.images
        )

    @in_thread
    def open_sample(self, caller: Caller, job_id: str, name: str) -> OpenFile:
        """Open a validation image.

        Raises:
            NotFoundError: The job has no validation image of this name.
        """
        record = self._jobs.record(caller, job_id)
        images = [image for made in record.artifacts.validations for image in made.images]
        return self._open(record, name, images)

    @in_thread
    def thumbnail(self, caller: Caller, job_id: str, name: str) -> bytes:
        """Return a small JPEG of a validation image.

        Raises:
            NotFoundError: The job has no validation image of this name, or it cannot be read.
            StoreError: The store is unavailable.
        """
        record = self._jobs.record(caller, job_id)
        images = [image for made in record.artifacts.validations for image in made.images]
        opened = self._open(record, name, images)
        if opened.size > _MAX_IMAGE_BYTES:
            raise NotFoundError("the image is too large for a thumbnail")
        return _thumbnail(self._store.get(opened.key))

    def _open(self, record: JobRecord, name: str, files: list[Artifact]) -> OpenFile:
        for file in files:
            if file.name == name:
                return OpenFile(name, file.size, file.sha256, self._store, file.key)
        raise NotFoundError(f"job {record.id} has no such file")

    def _manifest(self, record: JobRecord) -> dict[str, Any] | None:
        key = record.artifacts.manifest
        if key is None:
            return None
        manifest: dict[str, Any] = json.loads(self._store.get(key))
        return manifest


def _steps_of_files(record: JobRecord) -> dict[str, int]:
    """Return the step of each published file of weights, by the file's name."""
    name = record.job.name
    return {
        f"{stem}{file.name.removeprefix(name)}": saved.step
        for stem, saved in record.artifacts.published_checkpoints(name).items()
        for file in saved.files
    }


def _thumbnail(data: bytes) -> bytes:
    """Return a small JPEG of an image.

    Raises:
        NotFoundError: It cannot be read.
    """
    small = io.BytesIO()
    try:
        with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
            if image.width * image.height > _MAX_PIXELS:
                raise ValueError("the image is too large")
            image.thumbnail((_THUMBNAIL_SIDE, _THUMBNAIL_SIDE))
            image.convert("RGB").save(small, "JPEG", quality=82)
    except (OSError, ValueError, SyntaxError) as error:
        raise NotFoundError("the image cannot be read") from error
    return small.getvalue()


def _files_in(manifest: dict[str, Any] | None) -> list[Artifact]:
    listed = [] if manifest is None else manifest["files"]
    return [Artifact.model_validate(file) for file in listed]


def _prompt(prompts: tuple[str, ...], image: Artifact) -> str | None:
    """Return the prompt of an image; None when its name does not give one."""
    match = _IMAGE.fullmatch(image.name)
    number = 0 if match is None else int(match[1])
    return prompts[number - 1] if 1 <= number <= len(prompts) else None
