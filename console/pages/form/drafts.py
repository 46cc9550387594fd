"""Open drafts: kept for a day, so that a reloaded page shows them, whichever console serves it."""

import asyncio
import json
import re
import secrets
import shutil
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from redis import Redis

from console.errors import ConsoleError, NotFoundError, TooLargeError
from console.pages.form.draft import Draft
from console.pages.form.image_collection import ImageCollection
from console.pages.layout import Frame
from console.services.keys import DRAFTS_PREFIX
from console.services.services import Services
from console.services.shared_values import SharedValues, available
from console.services.shares import AccountCache
from console.services.threads import in_thread
from console.views import DatasetView, ImageView, UploadView
from tasks.access.api_keys import Caller, Scope
from tasks.data.uploads import upload_id_in
from tasks.errors import InvalidJobError, JobError

# Of an account; its least recently used one is closed first.
_MAX_DRAFTS = 20
_TTL_S = 86_400
# What users type; images are files.
_MAX_BYTES = 2**18
_CLEANING_INTERVAL_S = 3600.0
_ID = re.compile(r"[0-9a-f]{24}")
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
        id: Its id.
        caller: The caller who opened it.
        draft: What the caller filled in.
        collection: Images that the caller added.
        upload: The archive of these images; None until it is uploaded.
        images: The images in the upload.
        report: Report on the dataset; None until it is checked.
        checked_options: The options that the report depends on.
        is_own_upload: Whether the upload was made for this draft and no job uses it.
        has_changed: Whether the images or captions have changed since the upload.
        revision: Names the state in the broker that it was read from, or saved as.
    """

    id: str
    caller: Caller
    draft: Draft
    collection: ImageCollection
    upload: UploadView | None = None
    images: tuple[ImageView, ...] = ()
    report: DatasetView | None = None
    checked_options: str = ""
    is_own_upload: bool = False
    has_changed: bool = False
    revision: str = ""


class Drafts:
    """The open drafts of all callers, which any console of a broker continues. Methods block.

    What callers filled in is in the broker, added images are in a folder that consoles share.
    Reports are made again where a draft was not opened before.

    Args:
        client: A connection to the broker.
        folder: Folder of added images until they are uploaded.
        max_bytes: Maximum size of a draft's images; all drafts of an account may have twice that.

    Raises:
        UnavailableError: From every method, when the broker is unavailable.
    """

    def __init__(self, client: Redis, folder: Path, max_bytes: int) -> None:
        self._values = SharedValues(client, DRAFTS_PREFIX, _MAX_DRAFTS, _TTL_S)
        self._folder, self._max_bytes = folder, max_bytes
        # With images and reports, which are costly to make.
        self._open: AccountCache[OpenDraft] = AccountCache(_MAX_DRAFTS)
        self._cleaned_at = -_CLEANING_INTERVAL_S

    def open(self, caller: Caller, draft: Draft) -> str:
        """Open a draft and return its id, which is random."""
        self._remove_expired_images()
        draft_id = secrets.token_hex(12)
        opened = OpenDraft(draft_id, caller, draft, self._collection(caller.account, draft_id))
        self.save(opened)
        self._open.add(caller.account, draft_id, opened)
        return draft_id

    def find(self, caller: Caller, draft_id: str) -> OpenDraft | None:
        """Return a caller's draft; None if the caller has none of this id."""
        with available():
            stored = self._values.get(draft_id) if _ID.fullmatch(draft_id) else None
        if stored is None or [stored["account"], stored["key"]] != [caller.account, caller.name]:
            return None
        opened = self._open.get(draft_id)
        if opened is not None and opened.revision == stored["revision"]:
            return opened
        draft = Draft.restored(stored["draft"])
        if draft is None:
            return None
        opened = OpenDraft(
            draft_id,
            caller,
            draft,
            self._collection(caller.account, draft_id),
            is_own_upload=stored["is_own_upload"],
            has_changed=stored["has_changed"],
            revision=stored["revision"],
        )
        self._open.pop(draft_id)
        self._open.add(caller.account, draft_id, opened)
        return opened

    def save(self, opened: OpenDraft) -> None:
        """Keep what the caller has filled in so far.

        Raises:
            TooLargeError: It is too large.
        """
        revision = secrets.token_hex(8)
        value = {
            "key": opened.caller.name,
            "draft": opened.draft.state(),
            "is_own_upload": opened.is_own_upload,
            "has_changed": opened.has_changed,
            "revision": revision,
        }
        if len(json.dumps(value)) > _MAX_BYTES:
            raise TooLargeError(f"a form has at most {_MAX_BYTES:,} bytes; shorten its texts")
        account = opened.caller.account
        with available():
            displaced = self._values.put(account, opened.id, value)
        opened.revision = revision
        for draft_id in displaced:
            self._open.pop(draft_id)
            self._collection(account, draft_id).clear()

    def close(self, opened: OpenDraft) -> None:
        """Close a draft whose job was submitted."""
        with available():
            self._values.remove(opened.id)
        self._open.pop(opened.id)
        opened.collection.clear()

    def _collection(self, account: str, draft_id: str) -> ImageCollection:
        return ImageCollection(
            self._folder, draft_id, self._max_bytes, lambda: self._free_bytes(account)
        )

    def _free_bytes(self, account: str) -> int:
        with available():
            draft_ids = self._values.ids(account)
        used = sum(
            ImageCollection(self._folder, draft_id, self._max_bytes).size for draft_id in draft_ids
        )
        return _MAX_SIZES * self._max_bytes - used

    def _remove_expired_images(self) -> None:
        """Remove the images of drafts that have expired, and files of killed consoles."""
        now = time.monotonic()
        if now - self._cleaned_at < _CLEANING_INTERVAL_S or not self._folder.is_dir():
            return
        self._cleaned_at = now
        # Some are not in the broker yet.
        old = [path for path in self._folder.iterdir() if _age_s(path) > _CLEANING_INTERVAL_S]
        with available():
            existing = self._values.existing([path.stem for path in old])
        for path in old:
            if path.stem in existing:
                continue
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def _age_s(path: Path) -> float:
    try:
        return time.time() - path.stat().st_mtime
    except FileNotFoundError:  # another console has just removed it
        return 0.0


class DraftImages:
    """Uploads and checks the images of a draft.

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
        self._lock = asyncio.Lock()
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
        return opened.has_changed or is_outdated

    async def mark_changed(self) -> None:
        """Note, for good, that the caller added or removed images, or wrote captions."""
        self._opened.has_changed = True
        try:
            await self._save()
        except ConsoleError as error:
            self.message = error.message

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
            if self._opened.collection.is_empty:
                self.message = "The images of that job have expired; add them again."
            else:
                await self.mark_changed()
        else:
            self._opened.upload = upload
            await self._check()

    async def update(self) -> None:
        """Upload and check what has changed."""
        async with self._lock:
            self.message = ""
            try:
                if self._opened.has_changed:
                    await self._upload()
                elif self._opened.draft.dataset is not None:
                    await self._check()
            except (ConsoleError, JobError, OSError) as error:
                self.message = f"The upload failed: {error}"

    async def _upload(self) -> None:
        opened, caller = self._opened, self._frame.allowed(Scope.UPLOADS)
        opened.has_changed = False
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
        await self._save()
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
            images = await self._services.uploads.images(
                self._frame.allowed(Scope.UPLOADS), upload.id
            )
        except NotFoundError as error:
            self.message = f"{upload.name}: {error}"
            return ()
        # Captions that were written after the upload.
        written = {image.name: image.caption for image in self._opened.collection.images()}
        return tuple(
            image.model_copy(update={"caption": written.get(image.name, image.caption)})
            for image in images
        )

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
