"""The images of a draft on their way: sent, listed and checked by the service."""

import asyncio
import json

from console.errors import ConsoleError, NotFoundError
from console.pages.form.drafts import Begun
from console.pages.layout import Frame
from console.services.services import Services
from console.views import DatasetView, ImageView, UploadView
from tasks.data.uploads import upload_id_in
from tasks.errors import InvalidJobError, JobError

# What of a job decides what is found in its images.
_DECISIVE = (
    "type", "model", "data_loader", "train_batch_size", "use_masks",
    "clip_tokenizer_max_length", "t5_tokenizer_max_length",
)  # fmt: skip


class Images:
    """Sends what is gathered, and has it checked.

    Args:
        frame: Tells whose they are.
        service: Takes and checks them.
        begun: The draft; what is found is kept with it.
    """

    def __init__(self, frame: Frame, services: Services, begun: Begun) -> None:
        self._frame, self._services, self._begun = frame, services, begun
        self._alone = asyncio.Lock()
        self._is_unsent = False
        self.message = ""
        """Why they could not be sent or checked."""

    @property
    def errors(self) -> int:
        """How many of them stop the job."""
        checked = self._begun.checked
        return 0 if checked is None else sum(it.severity == "error" for it in checked.findings)

    @property
    def sizes(self) -> list[int] | None:
        """How many are of each training size; None where that is not known."""
        checked = self._begun.checked
        return None if checked is None or self.is_stale else list(checked.buckets.values())

    @property
    def is_stale(self) -> bool:
        """Whether what was found is of other images, or of another job."""
        begun = self._begun
        if begun.draft.dataset is None and begun.collection.is_empty:
            return False
        return self._is_unsent or (begun.checked is not None and begun.checked_for != self._key())

    def edited(self) -> None:
        """Images were added or removed, or captions written."""
        self._is_unsent = True

    async def find(self) -> None:
        """Look for the images that the draft has from an earlier job."""
        dataset = self._begun.draft.dataset or {}
        upload_id = upload_id_in(str(dataset.get("archive", "")))
        if upload_id is None or self._begun.upload is not None:
            return
        try:
            self._begun.upload = await self._services.uploads.get(self._frame.caller, upload_id)
        except NotFoundError:
            self._begun.draft.dataset = None
            self.message = "The images of that job are not kept any more; add them again."
        else:
            await self._look()

    async def update(self) -> None:
        """Send and check what is stale."""
        async with self._alone:
            self.message = ""
            try:
                if self._is_unsent:
                    await self._send()
                elif self._begun.draft.dataset is not None:
                    await self._look()
            except (ConsoleError, JobError, OSError) as error:
                self.message = f"The images could not be sent: {error}"

    async def _send(self) -> None:
        begun, caller = self._begun, self._frame.caller
        self._is_unsent = False
        former, own = begun.upload, begun.is_own_upload
        begun.upload, begun.listed, begun.checked = None, (), None
        begun.draft.dataset = None
        if not begun.collection.is_empty:
            packed = await asyncio.to_thread(begun.collection.pack)
            name = begun.collection.archive or f"{begun.draft.name}.zip"
            begun.upload = await self._services.uploads.put(caller, name, packed)
            begun.is_own_upload = True
            begun.draft.dataset = {"type": "ARCHIVE", "archive": begun.upload.source}
            await self._look()
        if former is not None and own:
            # An earlier job may be run again with its own.
            await self._services.uploads.delete(caller, former.id)

    async def _look(self) -> None:
        begun = self._begun
        listed = self._listed(begun.upload)
        begun.listed, begun.checked = await asyncio.gather(listed, self._checked())
        begun.checked_for = self._key()

    async def _listed(self, upload: UploadView | None) -> tuple[ImageView, ...]:
        if upload is None:
            return ()
        try:
            return await self._services.uploads.images(self._frame.caller, upload.id)
        except NotFoundError as error:
            self.message = f"{upload.name}: {error}"
            return ()

    async def _checked(self) -> DatasetView | None:
        try:
            document = self._begun.draft.document()
            preview = await self._services.submissions.preview(self._frame.caller, document)
        except InvalidJobError:
            # Another part of the form is to be mended first; that is told beside it.
            return None
        if preview.dataset is None and preview.error is not None:
            self.message = preview.error.message
        return preview.dataset

    def _key(self) -> str:
        values = self._begun.draft.values(_DECISIVE)
        return json.dumps(values, sort_keys=True, default=str)
