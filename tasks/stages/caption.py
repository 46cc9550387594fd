"""The task ``training.caption``: a model writes captions for the images of an upload.

It belongs to no job. One worker at a time carries a run out, which its lease ensures; another one
that gets the message again, after a worker was lost, finds the captions so far in the store.
"""

import hashlib
import logging
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from uuid import uuid4

import redis
from redis.exceptions import LockError
from redis.lock import Lock

from routing.queues import class_of
from tasks.captions.requests import MAX_IMAGES
from tasks.captions.runs import (
    ENDED,
    MAX_ATTEMPTS,
    CaptionRun,
    CaptionRuns,
    release,
)
from tasks.data.contents import Contents
from tasks.data.decoding.decoder_pool import DecodeError, decode_all, unpack_archive
from tasks.data.opening import open_resolved
from tasks.data.uploads import NoUploadError, StoredUploads
from tasks.errors import DatasetError, JobError, Problem
from tasks.escaping import safe_message
from tasks.events import CaptionWritten, Event
from tasks.extras import require
from tasks.metrics import CAPTION_RUNS
from tasks.stages.outcomes import Discarded, Requeued, RetriedAfterDelay
from tasks.stages.trainer_protocol import CaptionImage, CaptionRequest
from tasks.stages.worker_context import (
    CaptionServices,
    GpuUnhealthy,
    TrainerInterrupted,
    WorkerContext,
)

logger = logging.getLogger(__name__)

CaptionOutcome = Discarded | Requeued | RetriedAfterDelay
"""What becomes of the message: it is done with, another worker gets it, or it returns later."""

# No caption model sees more pixels than this side's square.
_SIDE = 1024


def write_captions(
    run_id: str, worker: WorkerContext, draining: Callable[[], bool]
) -> CaptionOutcome:
    """Carry out a caption run, unless it has ended or another worker does."""
    services = worker.captions
    if services is None:
        raise TypeError("this worker has no services for captions")
    started_s, extra = time.monotonic(), {"job": run_id, "stage": "caption"}
    try:
        lease = services.runs.lease(run_id, services.lease_s)
        if not lease.acquire(blocking=False):
            return RetriedAfterDelay(f"another worker writes the captions of {run_id}")
        try:
            # Read under the lease: another worker may have ended the run just before.
            run = services.runs.get(run_id)
            if run is None or run.state in ENDED:
                return Discarded(f"caption run {run_id} has ended, or was cancelled")
            extra["tenant"] = run.request.tenant
            logger.info("caption begins", extra=extra)
            try:
                outcome = _start(run, worker, services, lease, draining)
            finally:
                services.runs.show(run, worker.name, 0)
        finally:
            release(lease)
    except redis.RedisError as error:
        outcome = Requeued(f"the broker is unavailable: {error}")
    seconds = time.monotonic() - started_s
    logger.info("caption ended after %.1f s: %s", seconds, outcome.reason, extra=extra)
    return outcome


def _start(
    run: CaptionRun,
    worker: WorkerContext,
    services: CaptionServices,
    lease: Lock,
    draining: Callable[[], bool],
) -> CaptionOutcome:
    """Carry out a run under its lease, and record how it ended."""
    if run.attempts >= MAX_ATTEMPTS:
        services.runs.fail(run, f"{MAX_ATTEMPTS} workers that wrote its captions were lost")
        services.counters.add(CAPTION_RUNS.one("failed"))
        return Discarded("too many workers were lost")
    if not services.runs.begin(run):
        return Discarded("it was cancelled")
    services.runs.show(run, worker.name, services.lease_s)
    scratch = worker.scratch_dir / f"captions-{run.id}-{uuid4().hex[:8]}"
    start = _Start(run, worker, services, lease, draining, scratch)
    try:
        return start.carry_out_and_record()
    except LockError:
        return Discarded("another worker writes its captions")
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


@dataclass
class _Start:
    """One worker's start of a run."""

    run: CaptionRun
    worker: WorkerContext
    services: CaptionServices
    lease: Lock
    draining: Callable[[], bool]
    scratch: Path
    done: int = 0
    total: int = 0
    _renewed_s: float = field(default_factory=time.monotonic)

    @property
    def runs(self) -> CaptionRuns:
        """The fleet's runs."""
        return self.services.runs

    def carry_out_and_record(self) -> CaptionOutcome:
        """Carry the run out, and record its end.

        Raises:
            LockError: Another worker has the run.
            redis.RedisError: Nothing can be recorded; the run did not fail.
        """
        try:
            self.carry_out()
        except TrainerInterrupted:
            if not self.runs.give_back(self.run):
                return Discarded("it was cancelled")
            return Requeued(f"{self.worker.name} stops")
        except GpuUnhealthy as unhealthy:
            self.runs.give_back(self.run)
            return Requeued(f"it waits for another GPU than {self.worker.name}'s: {unhealthy}")
        except (redis.RedisError, LockError):
            raise
        except JobError as error:
            if error.retryable and self.run.attempts + 1 < MAX_ATTEMPTS:
                return RetriedAfterDelay(error.message)
            return self._failed(error.message)
        except Exception as error:
            logger.exception("caption failed", extra={"job": self.run.id})
            return self._failed(f"{type(error).__name__}: {error}")
        self.runs.finish(self.run)
        self.services.counters.add(CAPTION_RUNS.one("done"))
        return Discarded(f"{self.done} images have captions")

    def _failed(self, message: str) -> CaptionOutcome:
        self.runs.fail(self.run, safe_message(message))
        self.services.counters.add(CAPTION_RUNS.one("failed"))
        return Discarded(f"it failed: {message}")

    def carry_out(self) -> None:
        """Read the upload and let the trainer write the captions.

        Raises:
            TrainerInterrupted: The run was cancelled, or the worker stops.
            GpuUnhealthy: The worker's GPU cannot take it now.
            LockError: Another worker has the run.
            JobError: It failed.
        """
        # A CPU worker need not have the libraries.
        require("torch")
        request, device = self.run.request, self.worker.device
        routed = class_of(request.queue)
        if routed is not None:
            self.worker.services.check_gpu(0.0)
        images = tuple(self._images())
        self.total = len(images)
        if not images:
            problem = Problem("files", "none of them is an image of the upload that can be read")
            raise DatasetError([problem], "caption")
        self._advance()
        self.services.trainer.caption(
            CaptionRequest(
                job_id=self.run.id,
                model=request.model,
                style=request.style,
                images=images,
                store_url=self.worker.store.url,
                device=device,
                limit_gib=routed.floor_gib if routed and device == "cuda" else None,
            ),
            on_event=self._on_event,
            stop_requested=self._stop_requested,
        )

    def _images(self) -> Iterator[CaptionImage]:
        """Yield the images to caption, each with a small copy that a decoder has made."""
        request, check_stop = self.run.request, self._check_stop
        uploads = StoredUploads(self.worker.store, request.tenant)
        self.scratch.mkdir(parents=True)
        try:
            archive = uploads.path_of(f"upload:{request.upload}", self.scratch / "upload")
            unpacked = unpack_archive(
                archive.resolve(),
                self.scratch / "unpacked",
                max_bytes=self.services.max_bytes,
                check_stop=check_stop,
            )
        except (NoUploadError, DecodeError) as error:
            raise DatasetError([Problem("upload", str(error))], "caption") from error
        files, wanted = unpacked.files, request.files
        images = Contents(files).images
        names = [name for name in images if wanted is None or name in wanted][:MAX_IMAGES]
        copies = [self.scratch / f"{number}.jpg" for number in range(len(names))]
        requests = (
            {"kind": "thumbnail", "path": str(files[name]), "thumbnail": str(copy), "side": _SIDE}
            for name, copy in zip(names, copies, strict=True)
        )
        answers = decode_all(requests, check_stop=check_stop)
        for name, copy, answer in zip(names, copies, answers, strict=True):
            # Why an image cannot be decoded is reported by the dataset's check.
            if not isinstance(answer, DecodeError):
                with open_resolved(files[name]) as file:
                    digest = hashlib.file_digest(file, "sha256").hexdigest()
                yield CaptionImage(name=name, path=str(copy), sha256=digest)

    def _on_event(self, event: Event) -> None:
        if isinstance(event, CaptionWritten):
            self.done += 1
            self._advance({event.name: event.text} if event.text else None)

    def _advance(self, captions: dict[str, str] | None = None) -> None:
        """Record how far the run is.

        Raises:
            TrainerInterrupted: It was cancelled.
        """
        # A restarted trainer reports the first captions again.
        done = min(self.done, self.total)
        if not self.runs.advance(self.run, done, self.total, captions):
            raise TrainerInterrupted

    def _check_stop(self) -> None:
        if self._stop_requested():
            raise TrainerInterrupted

    def _stop_requested(self) -> bool:
        """Whether the run was cancelled or the worker stops; renews the lease now and then.

        Raises:
            LockError: Another worker has the lease.
        """
        now = time.monotonic()
        if now - self._renewed_s > self.services.lease_s / 4:
            try:
                self.lease.reacquire()
                self.runs.show(self.run, self.worker.name, self.services.lease_s)
                is_cancelled = self.runs.get(self.run.id) is None
            except (redis.ConnectionError, redis.TimeoutError):
                return self.draining()  # an unavailable broker stops no work
            self._renewed_s = now
            if is_cancelled:
                return True
        return self.draining()
