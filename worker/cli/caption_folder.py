"""Captions for a local folder: its images go through the fleet, and come back as ``.txt`` files."""

import hashlib
import time
import zipfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from uuid import uuid4

from tasks.captions.requests import MAX_IMAGES, CaptionStyle
from tasks.captions.runs import CaptionRun
from tasks.client import Client
from tasks.data.contents import CaptionFiles, Contents, caption_name
from tasks.data.uploads import StoredUploads
from tasks.errors import ErrorCode, JobError, NoWorkerError, UsageError
from tasks.settings.settings import Settings
from tasks.store import Store

_POLL_EVERY_S = 0.5

Report = Callable[[CaptionRun], object]
"""Called with a run each time that it was looked at."""


@dataclass
class Captioned:
    """What became of a folder's images.

    Attributes:
        written: The caption files that were written.
        kept: The number of images that had a caption.
        failed: The images that have none still.
    """

    written: list[str] = field(default_factory=list)
    kept: int = 0
    failed: list[str] = field(default_factory=list)


def caption_folder(
    settings: Settings,
    client: Client,
    folder: Path,
    tenant: str,
    style: CaptionStyle,
    report: Report,
) -> Captioned:
    """Write a caption file for each image at the top of a folder that has none.

    Raises:
        UsageError: The folder does not exist or has no image, or there is no caption model.
        NoWorkerError: No live worker writes captions.
        JobError: A run failed, or the store cannot be written.
    """
    if settings.caption_model is None:
        raise UsageError("set TRAINING_CAPTION_MODEL, such as florence-community/Florence-2-base")
    if not folder.is_dir():
        raise UsageError(f"{folder} is not a folder")
    contents = Contents([path.name for path in folder.iterdir() if path.is_file()])
    if not contents.images:
        raise UsageError(f"{folder} has no image at its top")
    captions = CaptionFiles(contents.captions)
    lacking = [name for name in contents.images if captions.of(name) is None]
    found = Captioned(kept=len(contents.images) - len(lacking))
    reason = client.unserved_reason(settings.caption_queue) if lacking else None
    if reason is not None:
        raise NoWorkerError(reason)
    for start in range(0, len(lacking), MAX_IMAGES):
        names = lacking[start : start + MAX_IMAGES]
        texts = _texts(settings, client, folder, names, tenant, style, report)
        for name in names:
            file = folder / caption_name(name)
            if name in texts and _is_written(file, texts[name]):
                found.written.append(file.name)
            elif not file.exists():
                found.failed.append(name)
    return found


def _texts(
    settings: Settings,
    client: Client,
    folder: Path,
    names: list[str],
    tenant: str,
    style: CaptionStyle,
    report: Report,
) -> dict[str, str]:
    """Upload images, and return their captions."""
    uploads, upload_id = StoredUploads(Store(settings.resolved_store_url), tenant), uuid4().hex
    request = settings.caption_request(tenant, upload_id, None, style)
    assert request is not None, "there is a model"
    try:
        _upload(uploads, upload_id, folder, names)
        run = client.start_captions(request)
        try:
            return _followed(client, run, report)
        finally:
            client.captions.remove(run)
    finally:
        uploads.delete(upload_id)


def _upload(uploads: StoredUploads, upload_id: str, folder: Path, names: list[str]) -> None:
    """Store images of a folder as an upload."""
    with TemporaryDirectory(prefix="captions-") as scratch:
        archive = Path(scratch) / "images.zip"
        # Images do not become smaller.
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED, strict_timestamps=False) as file:
            for name in names:
                file.write(folder / name, name)
        with archive.open("rb") as stream:
            sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
        uploads.put(upload_id, f"{folder.absolute().name}.zip", archive, sha256)


def _followed(client: Client, run: CaptionRun, report: Report) -> dict[str, str]:
    """Wait for the end of a run, and return its captions.

    Raises:
        JobError: It failed, or was cancelled.
    """
    while run.state in ("waiting", "running"):
        time.sleep(_POLL_EVERY_S)
        current = client.captions.get(run.id)
        if current is None:
            raise JobError("the caption run was cancelled", ErrorCode.CANCELLED)
        run = current
        report(run)
    if run.state == "failed":
        raise JobError(run.error or "the caption run failed", ErrorCode.TRAINER_FAILED)
    return client.captions.captions(run.id)


def _is_written(file: Path, text: str) -> bool:
    """Write a caption file unless it exists by now."""
    with suppress(FileExistsError), file.open("x", encoding="utf-8") as stream:
        stream.write(f"{text}\n")
        return True
    return False
