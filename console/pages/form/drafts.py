"""Open drafts: kept for a while, so that a reloaded page shows them, with their images."""

import asyncio
import json
import secrets
import shutil
from dataclasses import dataclass
from pathlib import Path

from console.errors import ConsoleError, NotFoundError
from console.pages.form.draft import Draft
from console.pages.form.image_collection import ImageCollection
from console.pages.layout import Frame
from console.services.services import Services
from console.services.shares import AccountCache
from console.services.threads import in_thread
from console.views import DatasetView, ImageView, UploadView
from tasks.api_keys import Caller, Scope
from tasks.data.uploads import upload_id_in
from tasks.errors import InvalidJobError, JobError

# Of an account; its least recently used one is closed first.
_MAX_DRAFTS = 20
# Sizes of the largest draft that all drafts of an account may take together.
_MAX_SIZES = 2
# Options that a check of the images depends on.
_CHECKED_OPTIONS = (
    "type", "model", "data_loader", "train_batch_size", "use_masks",
    "clip_tokenizer_max_length", "t5_tokenizer_max_length",
)  # fmt: skip


@dataclass
class OpenDraft:
    """A draft with its images.

    Attributes:
        caller: The caller who opened it.
        draft: What the caller filled in.
        collection: Images that the caller added.
        upload: The archive of these images; None until it is uploaded.
        images: The images in the upload.
        report: Report on the dataset; None until it is checked.
        checked_options: The options that the report depends on.
        is_own_upload: Whether the upload was made for this draft and no job uses it.
    """

    caller: Caller
    draft: Draft
    collection: ImageCollection
    upload: UploadView | None = None
    images: tuple[ImageView, ...] = ()
    report: DatasetView | None = None
    checked_options: str = ""
    is_own_upload: bool = False


class Drafts:
    """The open drafts of all callers.

    Args:
        scratch: Folder of added images until they are uploaded.
        max_bytes: Maximum size of a draft's images; all drafts of an account may have twice that.
    """

    def __init__(self, scratch: Path, max_bytes: int) -> None:
        # Files of a console that was killed; only one process uses this folder.
        shutil.rmtree(scratch, ignore_errors=True)
        self._scratch, self._max_bytes = scratch, max_bytes
        self._open: AccountCache[OpenDraft] = AccountCache(
            _MAX_DRAFTS, lambda opened: opened.collection.clear()
        )

    def open(self, caller: Caller, draft: Draft) -> str:
        """Open a draft and return its id, which is random."""
        draft_id = secrets.token_urlsafe(12)
        collection = ImageCollection(
            self._scratch, self._max_bytes, lambda: self._free_bytes(caller.account)
        )
        self._open.add(caller.account, draft_id, OpenDraft(caller, draft, collection))
        return draft_id

    def find(self, caller: Caller, draft_id: str) -> OpenDraft | None:
        """Return a caller's draft; None if the caller has none of this id."""
        opened = self._open.get(draft_id)
        return opened if opened is not None and opened.caller == caller else None

    def close(self, draft_id: str) -> None:
        """Close a draft whose job was submitted."""
        opened = self._open.pop(draft_id)
        if opened is not None:
            opened.collection.clear()

    def _free_bytes(self, account: str) -> int:
        used = sum(opened.collection.size for opened in self._open.of(account))
        return _MAX_SIZES * self._max_bytes - used


class DraftImages:
    """Uploads and checks the images of a draft.

    Args:
        frame: Frame of the page.
        services: The services.
        opened: The draft, which keeps the results.
    """

    def __init__(self, frame: Frame, services: Services, opened: OpenDraft) -> None:
        self._frame, self._services, self._opened = frame, services, opened
        self._lock = asyncio.Lock()
        self._has_changed = False
        self.message = ""
        """Why the images could not be uploaded or checked."""

    @property
    def error_count(self) -> int:
        """Number of findings that stop the job."""
        report = self._opened.report
        return (
            0 if report is None else sum(finding.severity == "error" for finding in report.findings)
        )

    @property
    def sizes(self) -> list[int] | None:
        """Images per training size; None when unknown."""
        report = self._opened.report
        return None if report is None or self.is_stale else list(report.buckets.values())

    @property
    def is_stale(self) -> bool:
        """Whether the report is about other images or options."""
        opened = self._opened
        if opened.draft.dataset is None and opened.collection.is_empty:
            return False
        is_outdated = opened.report is not None and opened.checked_options != self._options()
        return self._has_changed or is_outdated

    def mark_changed(self) -> None:
        """Note that the caller added or removed images, or wrote captions."""
        self._has_changed = True

    async def find_upload(self) -> None:
        """Find the upload that the draft has from an earlier job."""
        dataset = self._opened.draft.dataset or {}
        upload_id = upload_id_in(str(dataset.get("archive", "")))
        if upload_id is None or self._opened.upload is not None:
            return
        try:
            upload = await self._services.uploads.get(self._frame.allowed(Scope.UPLOADS), upload_id)
        except NotFoundError:
            self._opened.draft.dataset = None
            self.message = "The images of that job have expired; add them again."
        else:
            self._opened.upload = upload
            await self._check()

    async def update(self) -> None:
        """Upload and check what has changed."""
        async with self._lock:
            self.message = ""
            try:
                if self._has_changed:
                    await self._upload()
                elif self._opened.draft.dataset is not None:
                    await self._check()
            except (ConsoleError, JobError, OSError) as error:
                self.message = f"The upload failed: {error}"

    async def _upload(self) -> None:
        opened, caller = self._opened, self._frame.allowed(Scope.UPLOADS)
        self._has_changed = False
        previous, was_own = opened.upload, opened.is_own_upload
        opened.upload, opened.images, opened.report = None, (), None
        opened.draft.dataset = None
        if not opened.collection.is_empty:
            archive = await in_thread(opened.collection.pack)()
            name = opened.collection.archive or f"{opened.draft.name}.zip"
            opened.upload = await self._services.uploads.put(caller, name, archive)
            opened.is_own_upload = True
            opened.draft.dataset = {"type": "ARCHIVE", "archive": opened.upload.source}
            await self._check()
        if previous is not None and was_own:
            # The upload of an earlier job stays: that job may be run again.
            await self._services.uploads.delete(caller, previous.id)

    async def _check(self) -> None:
        opened = self._opened
        images = self._images(opened.upload)
        opened.images, opened.report = await asyncio.gather(images, self._report())
        opened.checked_options = self._options()

    async def _images(self, upload: UploadView | None) -> tuple[ImageView, ...]:
        if upload is None:
            return ()
        try:
            return await self._services.uploads.images(
                self._frame.allowed(Scope.UPLOADS), upload.id
            )
        except NotFoundError as error:
            self.message = f"{upload.name}: {error}"
            return ()

    async def _report(self) -> DatasetView | None:
        try:
            document = self._opened.draft.document()
            preview = await self._services.submissions.preview(
                self._frame.allowed(Scope.JOBS_WRITE), document
            )
        except InvalidJobError:
            # The form shows the problems of other options beside their fields.
            return None
        if preview.dataset is None and preview.error is not None:
            self.message = preview.error.message
        return preview.dataset

    def _options(self) -> str:
        values = self._opened.draft.values(_CHECKED_OPTIONS)
        return json.dumps(values, sort_keys=True, default=str)
