"""The names on the wire. Uses only the standard library, so that a backend may copy this file."""

import hashlib

SUBMIT = "training.submit"
PREPARE = "training.prepare"
CACHE = "training.cache"
TRAIN = "training.train"
PUBLISH = "training.publish"
CAPTION = "training.caption"

STAGES = ("prepare", "cache", "train", "publish")
"""The stages of a job, in order."""

SUBMIT_QUEUE = "submit"
"""The queue of ``training.submit``, which sends the first stage."""

JOB_KEY = "training:job:"
"""Before a job's id: the key of the hash that is its record, with a field ``status``."""

EVENTS_SUFFIX = ":events"
"""After the hash's key: the key of the stream of the job's events other than progress."""

PROGRESS_SUFFIX = ":progress"
"""After the hash's key: the key of the stream of the job's progress, sampled over each stage."""

EVENT_FIELD = "event"
"""The only field of the streams' entries: JSON, with ``kind``."""

LAST_EVENT = "ended"
"""The ``kind`` of a job's last event."""

STATUSES = {
    "queued": "The job waits for its first stage.",
    "running": "The job has begun its first stage. It may wait for its next one.",
    "cancelling": "The job was cancelled, and its running stage is about to stop.",
    "pausing": "The job was paused, and its trainer is about to save a checkpoint.",
    "paused": "The job waits until it is resumed.",
    "succeeded": "The job's results are published.",
    "failed": "The job ended with an error.",
    "cancelled": "The job was cancelled. It has a result if a checkpoint was to be saved.",
}
"""The statuses of a job."""

ENDED = ("succeeded", "failed", "cancelled")
"""The final statuses; only the replay of a failed job leaves one."""

ERROR_FIELDS = ("message", "code", "stage", "retryable")
"""The arguments of the exception that a failed job's result raises, in order."""

ERROR_CODES = {
    "internal": "An error of the fleet itself; the workers' logs have the details.",
    "invalid_job": "The job cannot run as described; the message lists every problem.",
    "invalid_dataset": "The dataset cannot be trained on; the message lists every problem.",
    "invalid_model": "The base model is missing, incomplete or unreadable.",
    "invalid_destination": "The results cannot be copied to the Hub or the bucket of the job.",
    "no_broker": "There is no broker, it does not answer, or it refuses writes.",
    "no_worker": "No live worker serves the queue that the job needs.",
    "does_not_fit": "No GPU memory class holds the job; the message has the numbers.",
    "trainer_failed": "The trainer stopped without a result; the message has its last output.",
    "cancelled": "The job was cancelled.",
    "unknown_job": "There is no such job, or its record has expired.",
    "store": "The store could not be read or written.",
    "out_of_memory": "The GPU ran out of memory, in the next larger class too.",
    "gpu_failed": "The GPU failed while it computed, on a retry too.",
    "diverged": "The loss was not finite: the learning rate may be too high.",
    "superseded": "Another start of the stage has taken over.",
    "not_installed": "A part that the job needs is not installed on the worker.",
    "unreadable_file": "A file cannot be read.",
    "invalid_state": "The job's state does not allow the request.",
    "quota_exceeded": "A quota of the tenant refuses the job; the message says until when.",
    "usage": "A command line was wrong. No job fails with this code.",
}
"""The reasons why a job failed."""


def task_name(stage: str) -> str:
    """Return the Celery task name of a stage."""
    return f"training.{stage}"


def record_key(job_id: str) -> str:
    """Return the key in Redis of a job's record, a hash."""
    return f"{JOB_KEY}{job_id}"


def events_key(job_id: str) -> str:
    """Return the key in Redis of a job's events other than progress, a stream for XREAD."""
    return f"{record_key(job_id)}{EVENTS_SUFFIX}"


def progress_key(job_id: str) -> str:
    """Return the key in Redis of a job's progress, a stream for XREAD."""
    return f"{record_key(job_id)}{PROGRESS_SUFFIX}"


def position_order(position: str) -> tuple[int, int]:
    """Return the sort key of a stream position: one order for both streams of a job."""
    milliseconds, _, number = position.partition("-")
    return int(milliseconds), int(number or 0)


def job_id_of(message_id: str) -> str:
    """Return the id of a job without one, from the id of its ``training.submit`` message."""
    return hashlib.sha256(message_id.encode()).hexdigest()[:12]
