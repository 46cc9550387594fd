"""Images of saved datasets: unpacked to be edited, then checked, packed and uploaded."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from anyio import CancelScope

from console.errors import ConsoleError, InvalidRequestError
from console.services.images.dataset_checks import DatasetChecks
from console.services.images.image_collection import ImageCollection, NewFile, is_archive
from console.services.images.image_files import ImageFiles
from console.services.images.incoming_bytes import file_sha256
from console.services.images.uploads import Uploads
from console.services.threads import in_thread
from console.views import DatasetView, Finding, UploadView
from tasks.access.api_keys import Caller
from tasks.errors import JobError
from tasks.settings.settings import Settings


@dataclass(frozen=True)
class UploadedImages:
    """Images of a revision.

    Attributes:
        upload: Their upload.
        count: Their number.
        report: The report on them; None if they could not be read.
    """

    upload: UploadView
    count: int
    report: DatasetView | None


class DatasetImages:
    """Reads and uploads the images of saved datasets.

    Args:
        settings: The size of datasets.
        uploads: Their images.
        files: Unpacks archives.
        checks: Checks images.
    """

    def __init__(
        self, settings: Settings, uploads: Uploads, files: ImageFiles, checks: DatasetChecks
    ) -> None:
        self._settings, self._uploads = settings, uploads
        self._files, self._checks = files, checks

    def collection(self, scratch: Path) -> ImageCollection:
        """Return a collection without images."""
        return ImageCollection(scratch, "images", self._settings.upload_max_bytes)

    async def copy(
        self, caller: Caller, upload_id: str, scratch: Path
    ) -> tuple[ImageCollection, list[str]]:
        """Return a copy of an upload's images, and what is not among them.

        Raises:
            NotFoundError: The caller sees no upload of this id.
            ConflictError: The upload is incomplete.
            JobError: The upload is not an archive that can be read.
        """
        unpacked = await self._uploads.unpack(
            caller, upload_id, scratch / "unpacked", self._settings.data_max_bytes
        )
        images = self.collection(scratch)
        notes = await in_thread(images.add)(unpacked.files)
        return images, [*unpacked.notes, *notes]

    async def loose(
        self, caller: Caller, files: Sequence[NewFile], scratch: Path
    ) -> tuple[list[NewFile], list[str]]:
        """Return files, those of archives instead of these, and what archives have besides.

        Raises:
            JobError: An archive cannot be read.
        """
        loose: list[NewFile] = []
        notes: list[str] = []
        for number, file in enumerate(files):
            if not is_archive(file.name):
                loose.append(file)
                continue
            unpacked = await self._files.unpack(
                caller.account, file.path, scratch / str(number), self._settings.data_max_bytes
            )
            loose += unpacked.files
            notes += unpacked.notes
        return loose, notes

    @asynccontextmanager
    async def uploaded(
        self, caller: Caller, tenant: str, name: str, images: ImageCollection, former: str = ""
    ) -> AsyncIterator[UploadedImages | None]:
        """Upload images for the context, which records them; an error in it deletes the upload.

        Args:
            caller: The caller.
            tenant: The tenant of the images.
            name: The name of the upload.
            images: The images.
            former: The SHA-256 of the upload that they replace; for the same images again, the
                context gets None.

        Raises:
            InvalidRequestError: There is no image.
            InsufficientStorageError: The tenant's quota has too little space.
        """
        captions = [image.caption for image in await in_thread(images.images)()]
        if not captions:
            raise InvalidRequestError("a dataset needs an image", "images", "add one")
        archive = await in_thread(images.pack)()
        try:
            is_same = await in_thread(file_sha256)(archive) == former
            report = None if is_same else await self._report(caller, tenant, images, captions)
            upload = None
            if not is_same:
                upload = await self._uploads.put(caller, f"{name}.zip", archive, tenant)
        finally:
            with CancelScope(shield=True):
                await in_thread(archive.unlink)(missing_ok=True)
        if upload is None:
            yield None
            return
        try:
            yield UploadedImages(upload, len(captions), report)
        except BaseException:
            # The upload of a dataset that was recorded is refused here; another one expires.
            with CancelScope(shield=True), suppress(ConsoleError, JobError):
                await self._uploads.delete(caller, upload.id)
            raise

    async def _report(
        self, caller: Caller, tenant: str, images: ImageCollection, captions: list[str | None]
    ) -> DatasetView | None:
        checked = await self._checks.check_images(caller.account, tenant, images.folder)
        report, lacking = checked.report, sum(not caption for caption in captions)
        if report is None or not lacking:
            return report
        # Not every job reads captions.
        finding = Finding(
            severity="warning", file="images", remedy="write them",
            message=f"{lacking:,} of {len(captions):,} have no caption",
        )  # fmt: skip
        return report.model_copy(update={"findings": (finding, *report.findings)})
