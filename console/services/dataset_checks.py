"""Dataset checks, a few at a time, each in a separate process.

Only these processes decode images that callers upload. Each check starts a new process
(``python -P -m console.services.dataset_checks``), which reads one request from its standard input
and writes one reply to its standard output, both JSON. The console ends it after a time limit.
"""

import asyncio
import json
import logging
import os
import shutil
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from anyio import CancelScope
from pydantic import TypeAdapter

from console.errors import NotFoundError
from console.services.shares import Share
from console.services.threads import in_thread
from console.views import DatasetView, ErrorView, ImageView
from tasks.access.api_keys import write_private
from tasks.base_models.check import check_base_model
from tasks.base_models.noise_schedule import noise_notes
from tasks.data.contents import CaptionFiles, Contents
from tasks.data.decoding.decoder_pool import DecodeError, DecoderLimits, decode_all, unpack_archive
from tasks.data.listing import read_caption
from tasks.data.read_policy import ReadPolicy
from tasks.data.sources import Sources
from tasks.data.uploads import NoUploadError, StoredUploads
from tasks.data.validation import check_dataset
from tasks.errors import BaseModelError, DatasetError, JobError, Problem
from tasks.escaping import escaped
from tasks.jobs.job import TrainingConfig, TrainingJob
from tasks.settings.settings import Settings
from tasks.store import Store
from tasks.strict_model import StrictModel

logger = logging.getLogger(__name__)

_CONCURRENCY = 2
# Running or waiting, of all accounts.
_MAX_CHECKS = 10
TIMEOUT_S = 300.0
"""Time limit of a check."""
COMMAND = (sys.executable, "-P", "-m", "console.services.dataset_checks")
"""Command of the process."""

# Requests of pages have precedence.
_NICE = 10
_THUMBNAIL_SIDE = 256
# A console has less memory than a worker; images that need more are decoded alone.
_DECODERS = DecoderLimits(processes=2, memory_bytes=256 * 2**20)
_MAX_CAPTION = 2000
_MAX_IMAGES = 500

_CONFIG: TypeAdapter[TrainingConfig] = TypeAdapter(TrainingConfig)


class CheckRequest(StrictModel):
    """Request to the process."""

    kind: Literal["check", "thumbnails"]
    training: dict[str, Any] | None = None
    """Of ``check``: the training part of a job, resolved."""
    upload: str = ""
    """Of ``thumbnails``: the upload, as a job names it."""
    folder: str = ""
    """Of ``thumbnails``: the folder to write them to."""
    tenant: str
    store_url: str
    downloads_dir: str
    scratch_dir: str
    roots: tuple[str, ...] | None
    """Folders that datasets may be in; null for any."""
    hosts: tuple[str, ...]
    max_bytes: int


class CheckedDataset:
    """Result of a check.

    Attributes:
        report: Report on the dataset; None when it could not be read.
        sizes: Images per training size.
        error: Why a job with this dataset would fail.
    """

    def __init__(self, reply: dict[str, Any]) -> None:
        report = reply.get("report")
        self.report = None if report is None else DatasetView.model_validate(report)
        self.sizes: Sequence[int] | None = reply.get("sizes")
        self.error = ErrorView.model_validate(reply["error"]) if "error" in reply else None


class DatasetChecks:
    """Starts the processes and keeps thumbnails.

    Args:
        settings: What may be read, and the folders to use.
        thumbnails: The folder of thumbnails.
    """

    def __init__(self, settings: Settings, thumbnails: Path) -> None:
        self._settings, self._thumbnails = settings, thumbnails
        self._running = asyncio.Semaphore(_CONCURRENCY)
        self._pending = Share("dataset checks", _MAX_CHECKS, always=2, retry_after_s=30)
        # One at a time an account: slow servers of one account's jobs do not delay the others.
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def check(self, account: str, job: TrainingJob, policy: ReadPolicy) -> CheckedDataset:
        """Check a job's dataset and base model.

        Raises:
            TooManyError: The account has used up its share of checks.
        """
        training = job.training.model_dump(mode="json")
        return CheckedDataset(
            await self._request(account, job.tenant, policy, kind="check", training=training)
        )

    async def images(self, account: str, tenant: str, upload_id: str) -> tuple[ImageView, ...]:
        """Return the images of a complete upload, and make their thumbnails.

        Raises:
            TooManyError: The account has used up its share of checks.
            JobError: The upload is not an archive that can be read.
        """
        folder = self._thumbnails / tenant / upload_id
        index = folder / "images.json"
        if not index.exists():
            policy = ReadPolicy(max_bytes=self._settings.data_max_bytes)
            reply = await self._request(
                account,
                tenant,
                policy,
                kind="thumbnails",
                upload=f"upload:{upload_id}",
                folder=str(folder),
            )
            if "error" in reply:
                raise JobError(**reply["error"])
            await in_thread(write_private)(index, json.dumps(reply["images"]))
        documents = json.loads(await in_thread(index.read_bytes)())
        return tuple(ImageView.model_validate(document) for document in documents)

    def thumbnail(self, tenant: str, upload_id: str, number: int) -> bytes:
        """Return a thumbnail as JPEG.

        Raises:
            NotFoundError: There is no such image, or its thumbnail has not been made yet.
        """
        try:
            return (self._thumbnails / tenant / upload_id / f"{number}.jpg").read_bytes()
        except OSError as error:
            raise NotFoundError("there is no such image") from error

    def remove_thumbnails(self, tenant: str, upload_id: str) -> None:
        """Remove an upload's thumbnails."""
        shutil.rmtree(self._thumbnails / tenant / upload_id, ignore_errors=True)

    async def _request(
        self, account: str, tenant: str, policy: ReadPolicy, **fields: Any
    ) -> dict[str, Any]:
        with self._pending.hold(account):
            async with self._locks[account], self._running:
                scratch = await in_thread(self._make_scratch)()
                try:
                    return await _run(self._check_request(tenant, policy, scratch, **fields))
                finally:
                    # It may hold a whole unpacked archive.
                    with CancelScope(shield=True):
                        await in_thread(shutil.rmtree)(scratch, ignore_errors=True)

    def _make_scratch(self) -> str:
        folder = self._settings.resolved_scratch_dir / "console"
        folder.mkdir(parents=True, exist_ok=True)
        return tempfile.mkdtemp(dir=folder)

    def _check_request(
        self, tenant: str, policy: ReadPolicy, scratch: str, **fields: Any
    ) -> CheckRequest:
        return CheckRequest(
            tenant=tenant,
            store_url=self._settings.resolved_store_url,
            downloads_dir=str(self._settings.downloads_dir),
            scratch_dir=scratch,
            roots=policy.roots,
            hosts=tuple(sorted(policy.hosts)),
            max_bytes=policy.max_bytes,
            **fields,
        )


async def _run(request: CheckRequest) -> dict[str, Any]:
    """Run the process for one request and return its reply."""
    process = await asyncio.create_subprocess_exec(
        *COMMAND,
        # The process does not need the broker's password.
        env={name: value for name, value in os.environ.items() if not name.startswith("TRAINING_")},
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        document = request.model_dump_json().encode()
        output, _ = await asyncio.wait_for(process.communicate(document), TIMEOUT_S)
    except TimeoutError:
        return _failed("checking the dataset takes too long; submit the job instead")
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode != 0:
        logger.error("the process of a dataset check exited with %s", process.returncode)
        return _failed("the dataset cannot be checked; the console's log has the reason")
    reply: dict[str, Any] = json.loads(output)
    return reply


def _failed(message: str) -> dict[str, Any]:
    return {"error": {"code": "internal", "stage": "prepare", "message": message}}


def main() -> None:
    """Answer one request, in the process."""
    os.nice(_NICE)
    with suppress(OSError):
        # The kernel ends this process first when memory runs out.
        Path("/proc/self/oom_score_adj").write_text("1000", "utf-8")
    request = CheckRequest.model_validate_json(sys.stdin.buffer.read())
    try:
        reply = _check(request) if request.kind == "check" else _make_thumbnails(request)
    except JobError as error:
        reply = _error(error)
    except (NoUploadError, DecodeError) as error:
        reply = _error(DatasetError([Problem("", str(error))], "prepare"))
    sys.stdout.write(json.dumps(reply))


def _error(error: JobError) -> dict[str, Any]:
    return {"error": {"code": error.code, "stage": error.stage, "message": error.message}}


def _check(request: CheckRequest) -> dict[str, Any]:
    policy = ReadPolicy(request.roots, frozenset(request.hosts), request.max_bytes)
    uploads = StoredUploads(Store(request.store_url), request.tenant)
    scratch = Path(request.scratch_dir)
    sources = Sources(policy, Path(request.downloads_dir), scratch, uploads=uploads)
    config = _CONFIG.validate_python(request.training)
    # Both always run: the caller gets all problems at once.
    model_problems = check_base_model(config)
    report = check_dataset(config, sources, decoders=_DECODERS)
    report.warnings[:0] = noise_notes(config)
    reply = {"report": report.document(), "sizes": list(report.buckets.values())}
    if model_problems:
        return {**reply, **_error(BaseModelError(model_problems, "prepare"))}
    return reply | (_error(DatasetError(report.problems, "prepare")) if report.problems else {})


def _make_thumbnails(request: CheckRequest) -> dict[str, Any]:
    scratch, folder = Path(request.scratch_dir).resolve(), Path(request.folder)
    uploads = StoredUploads(Store(request.store_url), request.tenant)
    archive = uploads.path_of(request.upload, scratch / "uploads").resolve()
    unpacked = unpack_archive(archive, scratch / "unpacked", max_bytes=request.max_bytes)
    if unpacked.problems and not unpacked.files:
        raise DatasetError(unpacked.problems, "prepare")
    folder.mkdir(parents=True, exist_ok=True)
    return {"images": list(_thumbnails(unpacked.files, folder))}


def _thumbnails(files: dict[str, Path], folder: Path) -> Iterator[dict[str, Any]]:
    contents = Contents(files)
    captions = CaptionFiles(contents.captions)
    names = contents.images[:_MAX_IMAGES]
    requests = (
        {
            "kind": "thumbnail",
            "path": str(files[name]),
            "thumbnail": str(folder / f"{number}.jpg"),
            "side": _THUMBNAIL_SIDE,
        }
        for number, name in enumerate(names)
    )
    answers = decode_all(requests, limits=_DECODERS)
    for number, (name, answer) in enumerate(zip(names, answers, strict=True)):
        caption_name = captions.of(name)
        caption = caption_name and read_caption(files[caption_name], caption_name)
        problem = str(answer) if isinstance(answer, DecodeError) else None
        yield {
            "number": number,
            "name": escaped(name),
            # The check reports why a file is no caption.
            "caption": caption.strip()[:_MAX_CAPTION] if isinstance(caption, str) else None,
            "error": problem and escaped(problem),
        }


if __name__ == "__main__":
    main()
