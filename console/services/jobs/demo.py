"""The demo that the console offers: "Try it" submits a job with a small model and drawn images."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from console.errors import ConflictError
from console.services.images.uploads import Uploads
from console.services.jobs.submissions import Submissions
from console.services.threads import in_thread
from tasks.access.api_keys import Caller, Scope
from tasks.jobs.document import DocumentError, read_document
from tasks.settings.demo_folder import DemoFolder

_ARCHIVE_NAME = "demo-images.zip"


@dataclass(frozen=True)
class DemoState:
    """Whether the demo can be started.

    Attributes:
        is_ready: Its model and images exist.
        has_samples: Its job makes samples, from a model that can draw.
        problem: Why they cannot be prepared; empty if they can.
    """

    is_ready: bool
    has_samples: bool = False
    problem: str = ""


class Demo:
    """The demo in the folder of ``TRAINING_DEMO_DIR``; see ``worker/local/demo.py``.

    Its images become an upload of the caller, as if chosen in the form, so that "Run again" shows
    them.

    Args:
        path: The folder; None offers no demo.
        uploads: The uploads.
        submissions: Submits the job.
    """

    def __init__(self, path: Path | None, uploads: Uploads, submissions: Submissions) -> None:
        self._folder = None if path is None else DemoFolder(path.expanduser().absolute())
        self._uploads, self._submissions = uploads, submissions

    def is_offered_to(self, caller: Caller) -> bool:
        """Return whether a caller may start it: its model is a path, which tenants may not name."""
        scopes = (Scope.JOBS_WRITE, Scope.UPLOADS)
        return self._folder is not None and caller.is_operator and all(map(caller.allows, scopes))

    @in_thread
    def state(self) -> DemoState:
        """Return whether the demo can be started."""
        folder = self._folder
        if folder is None:
            return DemoState(is_ready=False)
        try:
            training = _document(folder).get("training") or {}
        except FileNotFoundError:
            return DemoState(is_ready=False, problem=_problem(folder))
        except ConflictError as error:
            return DemoState(is_ready=False, problem=str(error))
        return DemoState(is_ready=True, has_samples="validation_prompts" in training)

    async def start(self, caller: Caller) -> str:
        """Submit the demo's job and return its id.

        Raises:
            ConflictError: The caller may not start it, or it is not prepared yet.
            InvalidJobError: The job cannot run.
            InsufficientStorageError: The images do not fit.
        """
        if self._folder is None or not self.is_offered_to(caller):
            raise ConflictError("this console offers no demo to this key")
        document = await in_thread(_read)(self._folder)
        upload = await self._uploads.put(caller, _ARCHIVE_NAME, self._folder.archive)
        dataset = {"type": "ARCHIVE", "archive": f"upload:{upload.id}"}
        document["training"]["data_loader"]["dataset"] = dataset
        return (await self._submissions.submit(caller, document)).id


def _read(folder: DemoFolder) -> dict[str, Any]:
    try:
        document = _document(folder)
    except FileNotFoundError as error:
        raise ConflictError("the demo is not prepared yet; wait a few seconds") from error
    if not folder.archive.is_file():
        raise ConflictError("the demo's images are missing; restart 'training-worker up'")
    return document


def _document(folder: DemoFolder) -> dict[str, Any]:
    try:
        document: dict[str, Any] = read_document(folder.job.read_bytes()).values
    except DocumentError as error:
        raise ConflictError(f"{folder.job} {error}") from error
    return document


def _problem(folder: DemoFolder) -> str:
    try:
        return folder.problem.read_text("utf-8", "replace").strip()
    except FileNotFoundError:
        return ""
