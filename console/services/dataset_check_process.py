"""The process that looks into a dataset: images that nobody vouches for are read here only.

Started anew for each dataset, and ended where it takes too long. Reads one request from its
standard input and writes one answer to its standard output, both JSON.
"""

import json
import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from pydantic import TypeAdapter

from tasks.base_models.check import check_base_model
from tasks.data.archives import unpack
from tasks.data.images import SUFFIXES, UnreadableImageError, open_image
from tasks.data.read_policy import ReadPolicy
from tasks.data.sources import Sources
from tasks.data.uploads import NoUploadError, StoredUploads
from tasks.data.validation import check_dataset
from tasks.errors import BaseModelError, DatasetError, JobError, Problem
from tasks.jobs.job import TrainingConfig
from tasks.store import Store
from tasks.strict_model import StrictModel

# Whoever waits for pages comes first.
_NICE = 10
_THUMBNAIL = (256, 256)
_LONGEST_CAPTION = 2000
_MOST_IMAGES = 500

_CONFIG: TypeAdapter[TrainingConfig] = TypeAdapter(TrainingConfig)


class CheckRequest(StrictModel):
    """What to look into."""

    kind: Literal["check", "thumbnails"]
    training: dict[str, Any] | None = None
    """What to check: a job's training part, resolved."""
    upload: str = ""
    """Of which to make thumbnails, as a job names it."""
    folder: str = ""
    """Where they go."""
    tenant: str
    store_url: str
    downloads_dir: str
    scratch_dir: str
    roots: tuple[str, ...] | None
    """Where datasets may lie; null: anywhere."""
    hosts: tuple[str, ...]
    most_bytes: int


def main() -> None:
    """Answer one request."""
    os.nice(_NICE)
    with suppress(OSError):
        # Where memory runs out, this process is the one to end.
        Path("/proc/self/oom_score_adj").write_text("1000", "utf-8")
    request = CheckRequest.model_validate_json(sys.stdin.buffer.read())
    try:
        answer = _checked(request) if request.kind == "check" else _images(request)
    except JobError as error:
        answer = _error(error)
    except NoUploadError as error:
        answer = _error(DatasetError([Problem("", str(error))], "prepare"))
    sys.stdout.write(json.dumps(answer))


def _error(error: JobError) -> dict[str, Any]:
    return {"error": {"code": error.code, "stage": error.stage, "message": error.message}}


def _checked(request: CheckRequest) -> dict[str, Any]:
    access = ReadPolicy(request.roots, frozenset(request.hosts), request.most_bytes)
    uploads = StoredUploads(Store(request.store_url), request.tenant)
    scratch = Path(request.scratch_dir)
    sources = Sources(access, Path(request.downloads_dir), scratch, uploads=uploads)
    config = _CONFIG.validate_python(request.training)
    # Not one after the other: whoever asks wants to hear of both.
    model_faults = check_base_model(config)
    report = check_dataset(config, sources)
    answer = {"report": report.document(), "sizes": list(report.buckets.values())}
    if model_faults:
        return {**answer, **_error(BaseModelError(model_faults, "prepare"))}
    return answer | (_error(DatasetError(report.problems, "prepare")) if report.problems else {})


def _images(request: CheckRequest) -> dict[str, Any]:
    scratch, folder = Path(request.scratch_dir), Path(request.folder)
    uploads = StoredUploads(Store(request.store_url), request.tenant)
    archive = uploads.path_of(request.upload, scratch / "uploads")
    found = unpack(archive, scratch / "unpacked", most_bytes=request.most_bytes)
    files = found.files
    if found.problems and not files:
        raise DatasetError(found.problems, "prepare")
    folder.mkdir(parents=True, exist_ok=True)
    return {"images": list(_thumbnails(files, folder))}


def _thumbnails(files: dict[str, Path], folder: Path) -> Iterator[dict[str, Any]]:
    names = [name for name in sorted(files) if PurePosixPath(name).suffix.lower() in SUFFIXES]
    for number, name in enumerate(names[:_MOST_IMAGES]):
        caption = files.get(str(PurePosixPath(name).with_suffix(".txt")))
        text, problem = None, None
        if caption is not None:
            with caption.open("rb") as file:
                text = file.read(_LONGEST_CAPTION).decode("utf-8", "replace").strip()
        try:
            image = open_image(files[name].read_bytes())
            image.thumbnail(_THUMBNAIL)
            image.save(folder / f"{number}.jpg", "JPEG", quality=80)
        except (UnreadableImageError, OSError) as error:
            problem = str(error)
        yield {"number": number, "name": name, "caption": text, "message": problem}


if __name__ == "__main__":
    main()
