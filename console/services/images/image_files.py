"""Image files that callers upload: archives are unpacked and thumbnails made in a process."""

import json
import shutil
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anyio import CancelScope

from console.errors import NotFoundError
from console.services.images.image_collection import NewFile
from console.services.images.images_process import IMAGES_MODULE, ImagesRequest
from console.services.images.processes import Processes
from console.services.threads import in_thread
from console.views import ImageView
from tasks.access.api_keys import write_private
from tasks.data.listing import read_caption
from tasks.errors import JobError
from tasks.escaping import escaped
from tasks.jobs.datasets import ArchiveDatasetConfig
from tasks.settings.settings import Settings

_MAX_CAPTION = 2000
# Images of an upload that have a thumbnail.
_MAX_IMAGES = 500


@dataclass(frozen=True)
class UnpackedFiles:
    """Images of an archive.

    Attributes:
        files: The images with their captions.
        notes: What is not among them, and why.
    """

    files: list[NewFile]
    notes: list[str]


class ImageFiles:
    """Unpacks archives, and makes and keeps thumbnails.

    Args:
        settings: The folders to use, and the size of archives.
        processes: Starts the process.
        thumbnails: The folder of the thumbnails of uploads.
    """

    def __init__(self, settings: Settings, processes: Processes, thumbnails: Path) -> None:
        self._settings, self._processes, self._thumbnails = settings, processes, thumbnails

    async def unpack(
        self,
        account: str,
        archive: Path,
        folder: Path,
        max_bytes: int,
        config: ArchiveDatasetConfig | None = None,
    ) -> UnpackedFiles:
        """Unpack an archive into a folder.

        Args:
            account: The account whose share it takes.
            archive: The archive.
            folder: The folder, which the caller removes.
            max_bytes: The maximum that is unpacked.
            config: How a job reads the archive; None finds a JSONL file by its name.

        Raises:
            TooManyError: The account has used up its share.
            JobError: The file is not an archive that can be read.
        """
        reply = await self._request(
            account,
            ImagesRequest(
                kind="unpack", archive=str(archive.resolve()), folder=str(folder.resolve()),
                max_bytes=max(0, max_bytes), config=config,
            ),
        )  # fmt: skip
        files = [
            NewFile(name, Path(path), caption and Path(caption))
            for name, path, caption in reply["files"]
        ]
        return UnpackedFiles(files, reply["notes"])

    async def make_thumbnails(
        self, account: str, files: Sequence[tuple[Path, Path]]
    ) -> list[str | None]:
        """Make thumbnails; return why an image cannot be read, or None, for each.

        Args:
            account: The account whose share it takes.
            files: Images, each with the thumbnail to write.

        Raises:
            TooManyError: The account has used up its share.
            JobError: The process failed.
        """
        paths = tuple((str(path.resolve()), str(thumbnail)) for path, thumbnail in files)
        request = ImagesRequest(kind="thumbnails", files=paths)
        errors: list[str | None] = (await self._request(account, request))["errors"]
        return errors

    async def images(
        self, account: str, tenant: str, upload_id: str, archive: Path
    ) -> tuple[ImageView, ...]:
        """Return the images of a complete upload, and make their thumbnails.

        Raises:
            TooManyError: The account has used up its share.
            JobError: The upload is not an archive that can be read.
        """
        folder = self._thumbnails / tenant / upload_id
        index = folder / "images.json"
        if not index.exists():
            async with self.scratch() as scratch:
                max_bytes = self._settings.data_max_bytes
                unpacked = await self.unpack(account, archive, scratch, max_bytes)
                files = unpacked.files[:_MAX_IMAGES]
                await in_thread(folder.mkdir)(parents=True, exist_ok=True)
                thumbnails = [(it.path, folder / f"{n}.jpg") for n, it in enumerate(files)]
                errors = await self.make_thumbnails(account, thumbnails)
                views = await in_thread(_views)(files, errors)
            await in_thread(write_private)(index, json.dumps(views))
        documents = json.loads(await in_thread(index.read_bytes)())
        return tuple(ImageView.model_validate(document) for document in documents)

    def thumbnail(self, tenant: str, upload_id: str, number: int) -> bytes:
        """Return an upload's thumbnail as JPEG.

        Raises:
            NotFoundError: There is no such image, or its thumbnail has not been made yet.
        """
        try:
            return (self._thumbnails / tenant / upload_id / f"{number}.jpg").read_bytes()
        except OSError as error:
            raise NotFoundError("there is no such image") from error

    def remove_thumbnails(self, tenant: str, upload_id: str) -> None:
        """Remove an upload's thumbnails."""
        shutil.rmtree(self._thumbnails / tenant / upload_id, ignore_errors=True)

    @asynccontextmanager
    async def scratch(self) -> AsyncIterator[Path]:
        """Make a folder on this machine that is removed at the end of the context."""
        folder = await in_thread(self._make_scratch)()
        try:
            yield folder
        finally:
            # It may hold a whole unpacked archive.
            with CancelScope(shield=True):
                await in_thread(shutil.rmtree)(folder, ignore_errors=True)

    def _make_scratch(self) -> Path:
        folder = self._settings.resolved_scratch_dir / "console"
        folder.mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(dir=folder))

    async def _request(self, account: str, request: ImagesRequest) -> dict[str, Any]:
        reply = await self._processes.request(account, IMAGES_MODULE, request)
        if "error" in reply:
            raise JobError(**reply["error"])
        return reply


def _views(files: Sequence[NewFile], errors: Sequence[str | None]) -> list[dict[str, Any]]:
    """Return the images of an upload as JSON."""
    views = []
    for number, (file, error) in enumerate(zip(files, errors, strict=True)):
        caption = None if file.caption is None else read_caption(file.caption, file.name)
        # The check reports why a file is no caption.
        text = caption.strip()[:_MAX_CAPTION] if isinstance(caption, str) else None
        view = {"number": number, "name": escaped(file.name), "caption": text, "error": error}
        views.append(view)
    return views
