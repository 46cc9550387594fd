"""The working copy of a draft's images: loose files, checked where they are, packed at the end."""

import asyncio
import json
import secrets
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from anyio import CancelScope
from nicegui.elements.upload_files import FileUpload
from pydantic import ValidationError

from console.errors import ConflictError, ConsoleError, NotFoundError
from console.pages.form.drafts import OpenDraft, ShownImage
from console.pages.layout import Frame
from console.services.images.check_process import WORKING_COPY
from console.services.images.dataset_views import SavedDatasetView
from console.services.images.image_collection import CollectedImage, NewFile, is_archive, refusal
from console.services.services import Services
from console.services.threads import in_thread
from console.views import UploadView
from tasks.access.api_keys import Scope
from tasks.data.uploads import upload_id_in
from tasks.errors import InvalidJobError, JobError
from tasks.jobs.datasets import ArchiveDatasetConfig

# Options that a check of the images depends on.
_CHECKED_OPTIONS = (
    "type", "model", "data_loader", "train_batch_size", "use_masks", "trigger_word",
    "clip_tokenizer_max_length", "t5_tokenizer_max_length",
)  # fmt: skip
_GONE = "another page has submitted or discarded this form; open a new one"


class WorkingCopy:
    """Adds, checks and packs the images of a draft.

    Args:
        frame: Frame of the page.
        services: The services.
        opened: The draft, which keeps the results.
        save: Saves the draft.
    """

    def __init__(
        self,
        frame: Frame,
        services: Services,
        opened: OpenDraft,
        save: Callable[[], Awaitable[None]],
    ) -> None:
        self._frame, self._services, self._opened = frame, services, opened
        self._save = save
        self._lock, self._edits = asyncio.Lock(), asyncio.Lock()
        self._notes: list[str] = []
        self.message = ""
        """Why the images could not be read, checked or uploaded."""

    @property
    def is_used(self) -> bool:
        """Whether the job's images are these, not those of a source elsewhere."""
        return self._opened.draft.dataset is None

    @property
    def uncaptioned(self) -> list[str]:
        """Names of the images that a job needs captions of, and that have none."""
        if not self._opened.lacks_captions:
            return []
        return [image.name for image in self._opened.images if not image.caption]

    @property
    def error_count(self) -> int:
        """Number of findings that stop the job, but for missing captions."""
        report = self._opened.report
        return sum(it.severity == "error" for it in report.findings) if report else 0

    @property
    def sizes(self) -> list[int] | None:
        """Images per training size; None when unknown."""
        return None if self.is_stale else self._opened.sizes

    @property
    def is_stale(self) -> bool:
        """Whether the report is about other images or options."""
        opened = self._opened
        if self.is_used and not opened.images:
            return opened.changes > 0 and opened.report is not None
        return opened.checked != self._state()

    def take_notes(self) -> list[str]:
        """Return, once, what was not added, and why."""
        notes, self._notes = self._notes, []
        return notes

    def note_refused(self, names: Sequence[str]) -> None:
        """Note files that the browser did not send, as they cannot be added."""
        self._notes += [f"Not added: {problem}" for name in names if (problem := refusal(name))]

    async def receive(self, files: Sequence[FileUpload]) -> None:
        """Add files that a browser sends; an archive's images are added one by one."""
        async with self._lock:
            with self._noting("Not added: some files"):
                await self._receive(files)

    async def find_former(self) -> None:
        """Copy the images of an earlier job, whose upload the draft names, to edit them here."""
        dataset = self._opened.draft.dataset or {}
        upload_id = upload_id_in(str(dataset.get("archive", "")))
        if upload_id is None:
            return
        async with self._lock:
            self.message = ""
            try:
                await self._add_upload(upload_id, dataset)
            except NotFoundError:
                self.message = "The images of that job have expired; add them again."
            except (ConsoleError, JobError, OSError, ValidationError) as error:
                self.message = f"These images cannot be edited here, only used as they are: {error}"
                return
            self._opened.draft.dataset = None
            await self._changed()

    async def add_upload(self, upload_id: str) -> None:
        """Add a copy of the images of an upload.

        Raises:
            NotFoundError: The caller sees no upload of this id.
            ConsoleError: It cannot be read now.
            JobError: It is not an archive that can be read.
        """
        async with self._lock:
            await self._add_upload(upload_id, {})
            await self._changed()

    async def remove(self, name: str) -> None:
        """Remove an image, or a caption without an image."""
        async with self._editing():
            await in_thread(self._opened.collection.remove)(name)
            await self._changed()

    async def write_caption(self, name: str, caption: str) -> None:
        """Write an image's caption."""
        await self.write_captions({name: caption})

    async def write_captions(self, captions: dict[str, str | None]) -> None:
        """Write the captions of images."""

        def write() -> None:
            for name, caption in captions.items():
                self._opened.collection.write_caption(name, caption)

        async with self._editing():
            with self._noting("The captions were not written"):
                await in_thread(write)()
            await self._changed()

    async def edit_captions(self, edit: Callable[[CollectedImage], str]) -> dict[str, str | None]:
        """Change captions; return those that changed, as they were."""
        former: dict[str, str | None] = {}
        async with self._editing():
            with self._noting("The captions were not changed"):
                former = await in_thread(self._opened.collection.edit_captions)(edit)
            if former:
                await self._changed()
        return former

    async def settle(self) -> None:
        """Wait for the edits that have begun: a user may click right after typing."""
        async with self._edits:
            pass

    async def list_images(self) -> None:
        """Read which images and captions there are."""
        opened = self._opened

        def shown() -> tuple[ShownImage, ...]:
            folder = opened.thumbnails
            made = {path.stem for path in folder.iterdir()} if folder.is_dir() else set()
            return tuple(
                ShownImage(
                    it.name, it.caption, it.key, opened.errors.get(it.key, ""), it.key in made
                )
                for it in opened.collection.images()
            )

        opened.images = await in_thread(shown)()

    async def make_thumbnails(self) -> None:
        """Make the thumbnails that are missing."""
        opened = self._opened
        missing = [it for it in opened.images if not (it.has_thumbnail or it.error)]
        if not missing:
            return
        await in_thread(opened.thumbnails.mkdir)(parents=True, exist_ok=True)
        folder, thumbnails = opened.collection.folder, opened.thumbnails
        files = [(folder / it.name, thumbnails / f"{it.key}.jpg") for it in missing]
        account = self._frame.allowed(Scope.UPLOADS).account
        try:
            errors = await self._services.image_files.make_thumbnails(account, files)
        except (ConsoleError, JobError) as error:
            self.message = f"The images cannot be shown: {error}"
            return
        results = {it.key: error for it, error in zip(missing, errors, strict=True)}
        opened.errors |= {key: error for key, error in results.items() if error}
        opened.images = tuple(
            replace(it, error=results[it.key] or "", has_thumbnail=not results[it.key])
            if it.key in results
            else it
            for it in opened.images
        )

    async def check(self) -> None:
        """Check the images and captions for the draft's options."""
        async with self._lock:
            self.message = ""
            state = self._state()
            try:
                if self.is_used and not self._opened.images:
                    self.forget_report()
                elif self.is_used:
                    await self._check_copy()
                else:
                    await self._check_source()
            except InvalidJobError:
                # The form shows the problems of other options beside their fields.
                self.forget_report()
            except (ConsoleError, JobError, OSError) as error:
                self.message = f"The images cannot be checked: {error}"
            else:
                self._opened.checked = state

    async def upload(self, name: str) -> UploadView:
        """Upload the images, packed.

        Raises:
            ConsoleError: The upload failed, because of the tenant's quota.
            JobError: The store failed.
            OSError: The disk failed.
        """
        async with self._lock:
            await self.settle()
            caller = self._frame.allowed(Scope.UPLOADS)
            if await in_thread(lambda: self._opened.collection.is_empty)():
                raise ConflictError(_GONE)
            archive = await in_thread(self._opened.collection.pack)()
            try:
                return await self._services.uploads.put(caller, name, archive)
            finally:
                await in_thread(archive.unlink)(missing_ok=True)

    async def discard(self, upload: UploadView) -> None:
        """Delete an upload that no job uses."""
        try:
            await self._services.uploads.delete(self._frame.allowed(Scope.UPLOADS), upload.id)
        except (ConsoleError, JobError) as error:
            self.message = f"The upload {upload.id} could not be deleted: {error}"

    async def _receive(self, files: Sequence[FileUpload]) -> None:
        async with self._staging() as staging:
            loose = []
            for number, file in enumerate(files):
                # The browser encodes the folders, of which NiceGUI would keep none.
                name, path = unquote(file.name, errors="replace"), staging / str(number)
                await file.save(path)
                if is_archive(name):
                    await self._add_archive(name, path, staging / f"{number}.files")
                else:
                    loose.append(NewFile(name, path))
            await self._add(loose)

    async def _add_archive(self, name: str, path: Path, folder: Path) -> None:
        account = self._frame.allowed(Scope.UPLOADS).account
        max_bytes = await in_thread(self._opened.collection.free_bytes)()
        try:
            unpacked = await self._services.image_files.unpack(account, path, folder, max_bytes)
        except (ConsoleError, JobError) as error:
            self._notes.append(f"Not added: {name}: {error}")
            return
        self._notes += [f"{name}: {note}" for note in unpacked.notes]
        await self._add(unpacked.files)

    async def _add_upload(self, upload_id: str, dataset: dict[str, Any]) -> None:
        caller = self._frame.allowed(Scope.UPLOADS)
        config = ArchiveDatasetConfig.model_validate(dataset) if dataset.get("jsonl") else None
        max_bytes = await in_thread(self._opened.collection.free_bytes)()
        async with self._staging() as staging:
            unpacked = await self._services.uploads.unpack(
                caller, upload_id, staging, max_bytes, config
            )
            await self._add(unpacked.files)

    async def _add(self, files: Sequence[NewFile]) -> None:
        if not files:
            return
        notes = await in_thread(self._opened.collection.add)(files)
        self._notes += [f"Not added: {note}" for note in notes]
        await self._changed()

    @asynccontextmanager
    async def _editing(self) -> AsyncIterator[None]:
        # The report is stale from now on, not only once the edit is written.
        self._opened.changes += 1
        async with self._edits:
            yield

    @contextmanager
    def _noting(self, failure: str) -> Iterator[None]:
        """Note that the disk failed, as a full one does."""
        try:
            yield
        except OSError as error:
            self._notes.append(f"{failure}: {error.strerror or error}")

    @asynccontextmanager
    async def _staging(self) -> AsyncIterator[Path]:
        """Make a folder beside the collection, from which files are moved into it."""
        collection = self._opened.collection
        # A name that no draft has: those of a killed console are removed after an hour.
        folder = collection.scratch / f"{self._opened.id}-{secrets.token_hex(4)}"
        await in_thread(folder.mkdir)(parents=True)
        try:
            yield folder
        finally:
            with CancelScope(shield=True):
                await in_thread(shutil.rmtree)(folder, ignore_errors=True)

    async def _changed(self) -> None:
        """List the images, and let other consoles know of the change."""
        self._opened.changes += 1
        await self.list_images()
        try:
            await self._save()
        except ConsoleError as error:
            self.message = error.message

    async def _check_copy(self) -> None:
        opened, folder = self._opened, self._opened.collection.folder.resolve()
        if opened.dataset_id:
            caller = self._frame.allowed(Scope.UPLOADS)
            checked = await self._services.datasets.check(caller, folder)
        else:
            dataset = {"type": "ARCHIVE", "archive": WORKING_COPY}
            caller, document = self._frame.allowed(Scope.JOBS_WRITE), opened.draft.document(dataset)
            checked = await self._services.submissions.check_working_copy(caller, document, folder)
        opened.report, opened.faults = checked.report, checked.faults
        opened.lacks_captions = checked.lacks_captions
        opened.sizes = None if checked.sizes is None else list(checked.sizes)
        if checked.report is None and checked.error is not None:
            self.message = checked.error.message

    async def _check_source(self) -> None:
        opened = self._opened
        preview = await self._services.submissions.preview(
            self._frame.allowed(Scope.JOBS_WRITE), opened.draft.document()
        )
        self.forget_report()
        opened.report = preview.dataset
        if preview.dataset is not None:
            opened.sizes = list(preview.dataset.buckets.values())
        elif preview.error is not None:
            self.message = preview.error.message

    def forget_report(self) -> None:
        """Forget what the last check found."""
        self._opened.report, self._opened.faults = None, {}
        self._opened.lacks_captions, self._opened.sizes = False, None

    def _state(self) -> tuple[str, int]:
        """Return what a check depends on."""
        values = self._opened.draft.values(_CHECKED_OPTIONS)
        return json.dumps(values, sort_keys=True, default=str), self._opened.changes


def archive_of(images: UploadView | SavedDatasetView) -> dict[str, Any]:
    """Return the dataset of a job with these images."""
    return {"type": "ARCHIVE", "archive": images.source}
