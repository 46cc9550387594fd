"""The names on the wire. Standard library only, so that a backend may copy this file."""

SUBMIT = "training.submit"
PREPARE = "training.prepare"
CACHE = "training.cache"
TRAIN = "training.train"
PUBLISH = "training.publish"

STAGES = ("prepare", "cache", "train", "publish")
"""A job's stages, in their order."""

SUBMIT_QUEUE = "cpu"
"""Where ``training.submit`` is sent; it replaces itself with the routed chain."""


def task_name(stage: str) -> str:
    """The Celery task name of a stage."""
    return f"training.{stage}"
