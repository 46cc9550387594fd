"""The process that unpacks archives and makes thumbnails; it starts fast, for it imports little."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from console.services.images.image_collection import MAX_FILES
from console.services.images.processes import DECODERS, answer
from tasks.data.decoding.decoder_pool import DecodeError, decode_all, unpack_archive
from tasks.data.listing import SourceError
from tasks.data.loose_images import loose_images
from tasks.errors import DatasetError, Problem
from tasks.escaping import escaped
from tasks.jobs.datasets import ArchiveDatasetConfig
from tasks.strict_model import StrictModel

IMAGES_MODULE = "console.services.images.images_process"
"""This module, which ``Processes`` runs."""
_THUMBNAIL_SIDE = 256
_MAX_NOTES = 100


class ImagesRequest(StrictModel):
    """Request to the process."""

    kind: Literal["unpack", "thumbnails"]
    archive: str = ""
    """Of ``unpack``: the archive."""
    folder: str = ""
    """Of ``unpack``: the folder to unpack to."""
    max_bytes: int = 0
    """Of ``unpack``: the maximum that is unpacked."""
    config: ArchiveDatasetConfig | None = None
    """Of ``unpack``: how a job reads the archive; null finds a JSONL file by its name."""
    files: tuple[tuple[str, str], ...] = ()
    """Of ``thumbnails``: images, each with the thumbnail to write."""


def main() -> None:
    """Answer one request, in the process."""
    answer(ImagesRequest, _reply)


def _reply(request: ImagesRequest) -> dict[str, Any]:
    if request.kind == "thumbnails":
        return {"errors": _make_thumbnails(request.files)}
    folder = Path(request.folder)
    unpacked = unpack_archive(Path(request.archive), folder / "files", max_bytes=request.max_bytes)
    if unpacked.problems and not unpacked.files:
        raise DatasetError(unpacked.problems, "prepare")
    try:
        taken = loose_images(unpacked, folder, request.config)
    except SourceError as error:
        raise DatasetError([Problem("", str(error))], "prepare") from error
    notes = [str(problem) for problem in taken.problems[:_MAX_NOTES]]
    if len(taken.images) > MAX_FILES:
        notes.append(f"{len(taken.images) - MAX_FILES:,} images are over the {MAX_FILES:,} maximum")
    files = [
        (image.name, str(image.path), image.caption and str(image.caption))
        for image in taken.images[:MAX_FILES]
    ]
    return {"files": files, "notes": notes}


def _make_thumbnails(files: Sequence[tuple[str, str]]) -> list[str | None]:
    requests = (
        {"kind": "thumbnail", "path": path, "thumbnail": thumbnail, "side": _THUMBNAIL_SIDE}
        for path, thumbnail in files
    )
    answers = decode_all(requests, limits=DECODERS)
    return [escaped(str(it)) if isinstance(it, DecodeError) else None for it in answers]


if __name__ == "__main__":
    main()
