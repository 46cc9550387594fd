"""Captions that a model writes for the images of an upload, as a caller sees them."""

from collections.abc import Collection
from datetime import UTC, datetime

from console.errors import ConflictError, InvalidRequestError, NotFoundError
from console.services.images.uploads import Uploads
from console.services.threads import in_thread
from console.views import View
from tasks.access.api_keys import Caller
from tasks.captions.requests import (
    MAX_IMAGES,
    CaptionRequestDocument,
    CaptionStyle,
)
from tasks.captions.runs import CaptionRun, RunState
from tasks.client import Client
from tasks.data.uploads import is_upload_id
from tasks.settings.captions import CaptionSettings

_NO_MODEL = "this fleet writes no captions: its operator has not set TRAINING_CAPTION_MODEL"


class CaptionRunView(View):
    """A run of the model over the images of an upload."""

    id: str
    upload: str
    """Id of the upload."""
    state: RunState
    """`done` and `failed` are final. A failed run keeps the captions that it has written."""
    done: int
    """Number of images that the run is done with."""
    total: int
    """Number of images; 0 until the run has read the upload."""
    captions: dict[str, str]
    """Captions so far, by the names of the files in the upload."""
    error: str | None
    """Why the run failed."""
    waiting_reason: str | None = None
    """Why no worker can begin a run that waits; null if one can."""
    created_at: datetime


class Captioning:
    """Starts caption runs and returns their captions; another tenant's run is an unknown one.

    Args:
        client: The fleet.
        uploads: The uploads that callers see.
        settings: The model.
    """

    def __init__(self, client: Client, uploads: Uploads, settings: CaptionSettings) -> None:
        self._client, self._uploads, self._settings = client, uploads, settings

    @property
    def is_available(self) -> bool:
        """Whether a model is configured."""
        return self._settings.caption_model is not None

    async def start(
        self,
        caller: Caller,
        upload_id: str,
        *,
        only: Collection[str] | None = None,
        style: CaptionStyle = "detailed",
    ) -> CaptionRunView:
        """Start to write captions for images of an upload.

        Args:
            caller: The caller.
            upload_id: The upload.
            only: The names of the images in the upload; None for all.
            style: One sentence, or all that is to be seen. BLIP writes one sentence in any case.

        Raises:
            ConflictError: No model is configured, or the upload is incomplete.
            InvalidRequestError: There are no names, or too many.
            NotFoundError: The caller sees no upload of this id.
            TooManyCaptionRunsError: The tenant has too many runs that have not ended.
        """
        if not self.is_available:
            raise ConflictError(_NO_MODEL)
        if only is not None and not 0 < len(only) <= MAX_IMAGES:
            raise InvalidRequestError(
                f"these are {len(only):,} images", "files", f"name 1 to {MAX_IMAGES:,}"
            )
        upload = await self._uploads.complete(caller, upload_id)
        request = self._settings.caption_request(upload.tenant, upload.id, only, style)
        if request is None:
            raise ConflictError(_NO_MODEL)
        return await in_thread(self._started)(request)

    async def get(self, caller: Caller, run_id: str) -> CaptionRunView:
        """Return a run with its captions so far.

        Raises:
            NotFoundError: The caller sees no run of this id.
        """
        return await in_thread(self._view_of)(caller, run_id)

    @in_thread
    def cancel(self, caller: Caller, run_id: str) -> None:
        """Cancel a run, or remove one that has ended; its captions are removed too.

        Raises:
            NotFoundError: The caller sees no run of this id.
        """
        self._client.captions.remove(self._run(caller, run_id))

    def _started(self, request: CaptionRequestDocument) -> CaptionRunView:
        return self._viewed(self._client.start_captions(request))

    def _view_of(self, caller: Caller, run_id: str) -> CaptionRunView:
        return self._viewed(self._run(caller, run_id))

    def _viewed(self, run: CaptionRun) -> CaptionRunView:
        reason = self._client.unserved_reason(run.request.queue) if run.state == "waiting" else None
        return _view(run, self._client.captions.captions(run.id), reason)

    def _run(self, caller: Caller, run_id: str) -> CaptionRun:
        # The ids of runs have the form of those of uploads.
        run = self._client.captions.get(run_id) if is_upload_id(run_id) else None
        if run is None or caller.tenant not in (None, run.request.tenant):
            raise NotFoundError("there is no such caption run")
        return run


def _view(run: CaptionRun, captions: dict[str, str], reason: str | None) -> CaptionRunView:
    return CaptionRunView(
        id=run.id,
        upload=run.request.upload,
        state=run.state,
        done=run.done,
        total=run.total,
        captions=captions,
        error=run.error,
        waiting_reason=reason,
        created_at=datetime.fromtimestamp(run.created_at, UTC),
    )
