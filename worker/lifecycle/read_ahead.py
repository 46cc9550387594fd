"""Read-ahead: the next job's base model comes from disk while the present job computes.

The kernel reads the files into its page cache, which it empties first when memory is short. No
process holds their bytes, and nothing depends on them.
"""

import logging
import os
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

import huggingface_hub
from celery.worker.state import active_requests
from redis import Redis

from routing.classes import GIB
from tasks.base_models.files import weights_file, weights_files
from tasks.base_models.parts import Part, family_of
from tasks.contract import task_name
from tasks.errors import BaseModelFilesError, UnknownJobError, UnreadableJobError
from tasks.jobs.pipeline import PipelineConfig
from tasks.stages.messages import read_message
from tasks.state.job_reader import JobReader
from worker.gpu.host_memory import available_memory_bytes, host_memory_bytes
from worker.kombu_redis.scan import next_message
from worker.kombu_redis.transport import Keys
from worker.periodic import PeriodicThread, ThreadWatch
from worker.policy import WorkerPolicy

logger = logging.getLogger(__name__)

# With the bytes of a round, this leaves most of a disk to the job that computes: 200 MB a second.
_EVERY_S = 5.0
_ROUND_BYTES = GIB
# The kernel reads no more at one request than the disk's read-ahead: 128 KiB by default.
_PIECE_BYTES = 128 * 1024
# Of the machine's memory; what the present job may still take.
_LEFT_SHARE = 0.25

_STAGES = ("cache", "train")

Stage = tuple[str, str]
"""A job's id, and its ``cache`` or ``train`` stage."""


class ReadAhead(WorkerPolicy):
    """Reads the base model of the job whose message this worker gets next.

    Args:
        client: A connection to the broker that decodes responses.
        keys: The keys of kombu's messages.
        queues: The worker's queues, first served first.
        watch: Watches the thread.
        present: Returns the stages that this worker runs.
        available: Returns the bytes of memory that can be had without swapping.
    """

    def __init__(
        self,
        client: Redis,
        keys: Keys,
        queues: Iterable[str],
        watch: ThreadWatch,
        present: Callable[[], list[Stage]] | None = None,
        available: Callable[[], int] = available_memory_bytes,
    ) -> None:
        self._redis, self._keys, self._queues = client, keys, tuple(queues)
        self._jobs, self._available = JobReader(client), available
        self._present = present or _running_stages
        self._files: list[Path] = []
        self._unread: deque[tuple[Path, int]] = deque()
        self._thread = PeriodicThread(watch, "read-ahead", _EVERY_S, self.run_round)

    def on_ready(self) -> None:
        """Start reading."""
        self._thread.start()

    def on_stopping(self) -> None:
        """Read no more."""
        self._thread.stop()

    def run_round(self) -> None:
        """Read a part of the next job's files; none while no job computes."""
        present = self._present()
        job_id, *stages = self._next_stages(present) if present else ("",)
        if not stages:
            return
        # What a job loads is read already, or kept by the trainer.
        loaded = {
            file
            for other, stage in present
            for file in self._weights(other, [stage] if other == job_id else _STAGES)
        }
        files = [file for file in self._weights(job_id, stages) if file not in loaded]
        if files != self._files:
            self._files, self._unread = files, deque((file, 0) for file in files)
            names = ", ".join(file.name for file in files)
            logger.info("reads ahead: %s", names or "nothing", extra={"job": job_id})
        self._read(_ROUND_BYTES)

    def _next_stages(self, present: list[Stage]) -> tuple[str, ...]:
        """Return the job that this worker probably computes next, and its stages."""
        for queue in self._queues:
            with suppress(ValueError):  # the worker sets an unreadable message aside
                text = next_message(self._redis, self._keys, queue)
                message = read_message(text, queue) if text else None
                if message and message.job_id and message.stage in _STAGES:
                    return message.job_id, *_STAGES[_STAGES.index(message.stage) :]
        # Without another job, the present one itself.
        return next(((job_id, "train") for job_id, stage in present if stage == "cache"), ("",))

    def _weights(self, job_id: str, stages: Iterable[str]) -> list[Path]:
        """Return the local files of a job's stages; none if they will fail, or download them."""
        try:
            training = self._jobs.get(job_id).training
            return [file for stage in stages for file in local_weights(training, stage)]
        except (BaseModelFilesError, UnknownJobError, UnreadableJobError):
            return []

    def _read(self, limit: int) -> None:
        """Let the kernel read up to a number of bytes."""
        while self._unread and limit > 0:
            path, start = self._unread[0]
            descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
            try:
                size = os.fstat(descriptor).st_size
                left = self._available() - (size - start)
                if left < _LEFT_SHARE * host_memory_bytes():
                    return  # a later round may find room
                end = min(size, start + limit)
                for offset in range(start, end, _PIECE_BYTES):
                    length = min(_PIECE_BYTES, end - offset)
                    os.posix_fadvise(descriptor, offset, length, os.POSIX_FADV_WILLNEED)
            finally:
                os.close(descriptor)
            limit -= end - start
            self._unread[0] = path, end
            if end >= size:
                self._unread.popleft()


def local_weights(config: PipelineConfig, stage: str) -> list[Path]:
    """Return the files on this machine with the weights that a job loads in a stage.

    Nothing is downloaded: what the Hub's cache lacks is left out.

    Args:
        config: The job's config.
        stage: ``cache`` or ``train``.

    Raises:
        BaseModelFilesError: A file is missing or unreadable.
    """
    denoiser, *encoders = family_of(config).parts.items()
    cached = [
        (name, part)
        for name, part in encoders
        if (config.cache_vae_outputs if name == "vae" else config.caches_text)
    ]
    parts = [denoiser, *(each for each in encoders if each not in cached)]
    if stage == "cache":
        parts = cached
    elif config.validation_prompts:
        parts += [each for each in cached if each[0] == "vae"]
    files = (file for name, part in parts for file in _files_of(config, name, part))
    return list(dict.fromkeys(files))


def _files_of(config: PipelineConfig, name: str, part: Part) -> list[Path]:
    if (file := weights_file(config, part.option)) is not None:
        return [file]
    replaced = config.vae_model if name == "vae" else None
    location = replaced or config.model
    folder = Path(location)
    if not folder.is_dir():
        known = huggingface_hub.try_to_load_from_cache(location, f"{name}/config.json")
        if not isinstance(known, str):
            return []
        folder = Path(known).parent.parent
    own = folder / name
    return weights_files(config, folder if replaced and not own.is_dir() else own)


def _running_stages() -> list[Stage]:
    """Return the stages that the pool runs."""
    stages = {task_name(stage): stage for stage in _STAGES}
    try:
        running = [request for request in active_requests if request.name in stages]
    except RuntimeError:  # the main thread has changed the set: the next round sees it
        return []
    return [(request.args[0], stages[request.name]) for request in running]
