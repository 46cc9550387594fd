"""The demo that the console offers: "Try it" submits a job with a small model and drawn images."""

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

    async def start(self, caller: Caller) -> str:
        """Submit the demo's job and return its id.

        Raises:
            ConflictError: The caller may not start it, or it is not prepared.
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
        document: dict[str, Any] = read_document(folder.job.read_bytes()).values
        if not folder.archive.is_file():
            raise FileNotFoundError(folder.archive)
    except FileNotFoundError as error:
        raise ConflictError(
            f"the demo is not prepared: run 'python -P -m worker.local.demo {folder.path}'"
        ) from error
    except DocumentError as error:
        raise ConflictError(f"{folder.job} {error}") from error
    return document
