"""The names on the wire. Standard library only, so that a backend may copy this file."""

import hashlib

SUBMIT = "training.submit"
PREPARE = "training.prepare"
CACHE = "training.cache"
TRAIN = "training.train"
PUBLISH = "training.publish"

STAGES = ("prepare", "cache", "train", "publish")
"""A job's stages, in their order."""

SUBMIT_QUEUE = "cpu"
"""Where ``training.submit`` is sent; it replaces itself with the routed chain."""

JOB_KEY = "training:job:"
"""Before a job's id: the hash in Redis that is its record. ``status`` is one of its fields."""

EVENTS_SUFFIX = ":events"
"""After the hash's key: the stream of what is told of the job."""

EVENT_FIELD = "event"
"""The one field of the stream's entries: JSON, with ``kind``."""

LAST_EVENT = "ended"
"""The ``kind`` of a job's last event."""

STATUSES = {
    "queued": "It waits for its first stage.",
    "running": "It is between its first stage and its end, also where it waits for the next one.",
    "cancelling": "Somebody cancelled it, and what runs of it is about to stop.",
    "pausing": "Somebody paused it, and its trainer is about to save a checkpoint.",
    "paused": "It waits until somebody resumes it.",
    "succeeded": "Its results are published.",
    "failed": "It ended with an error.",
    "cancelled": "Somebody cancelled it; with a result where there was something to save.",
}
"""What a job's status may be."""

ENDED = ("succeeded", "failed", "cancelled")
"""Those after which nothing more happens, unless somebody replays a failed job."""

ERROR_FIELDS = ("message", "code", "stage", "retryable")
"""The arguments of the exception that a failed job's result raises, in their order."""

ERROR_CODES = {
    "internal": "A fault of the fleet's own; its operator finds more in the workers' logs.",
    "invalid_job": "The job cannot run as described; the message lists every fault.",
    "invalid_dataset": "The dataset cannot be trained on; the message lists every fault.",
    "invalid_model": "The base model is missing, incomplete or unreadable.",
    "no_broker": "There is no broker, or it does not answer.",
    "no_worker": "No live worker serves the queue that the job needs.",
    "does_not_fit": "No GPU memory class holds the job; the message has the numbers.",
    "trainer_failed": "The trainer stopped without a result; the message holds its last words.",
    "cancelled": "Somebody cancelled the job.",
    "unknown_job": "There is no such job, or its life time is over.",
    "store": "Something could not be read from the store, or written to it.",
    "out_of_memory": "The GPU's memory was full, in the next larger class too.",
    "diverged": "The loss was not finite: the learning rate is too high, say.",
    "superseded": "Another start of the stage has taken over.",
    "not_installed": "A part that the job needs is not installed on the worker.",
    "unreadable_file": "A file cannot be read.",
    "invalid_state": "The job's state does not allow the request.",
    "usage": "A command line was wrong. No job fails with this code.",
}
"""Why a job failed."""


def task_name(stage: str) -> str:
    """The Celery task name of a stage."""
    return f"training.{stage}"


def record_key(job_id: str) -> str:
    """The key in Redis of a job's record, a hash."""
    return f"{JOB_KEY}{job_id}"


def events_key(job_id: str) -> str:
    """The key in Redis of a job's events, a stream to be read with XREAD."""
    return f"{record_key(job_id)}{EVENTS_SUFFIX}"


def job_id_of(message_id: str) -> str:
    """The id of a job that was sent without one, by the id of its ``training.submit`` message."""
    return hashlib.sha256(message_id.encode()).hexdigest()[:12]
