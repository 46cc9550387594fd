"""What the stages of a job leave for each other, as fields of the job's hash in Redis."""

import json
from collections.abc import Mapping
from typing import Self

from tasks.events import CheckpointSaved, PublishedCopy, TrainDone, ValidationImages
from tasks.strict_model import StrictModel

_PREFIX = "artifact:"


def artifact_field(name: str) -> str:
    """Return the name of an artifact's field in the job's hash."""
    return f"{_PREFIX}{name}"


class JobArtifacts(StrictModel):
    """The artifacts of a job, or an update of them.

    An update holds the fields that it sets and no others; see ``hash_fields``.
    """

    read_roots: tuple[str, ...] | None = None
    """The places that the job's datasets may be read from, beside public ones; null for a job that
    reads whatever its workers may."""

    report: str | None = None
    """The store key of the dataset's report."""

    dataset: str | None = None
    """The store key of the normalized dataset."""

    images: int | None = None
    """The number of images of the dataset; null before they are checked."""

    cache_queue: str | None = None
    """The queue of the ``cache`` stage; null for the job's GPU queue."""

    cache_index: str | None = None
    """The store key of the index of the job's cache entries."""

    checkpoints: tuple[CheckpointSaved, ...] = ()
    """The checkpoints that are kept, oldest first."""

    validations: tuple[ValidationImages, ...] = ()
    """The validation images, by step."""

    trained: TrainDone | None = None
    """The trainer's answer; null before it, and for a cancelled job."""

    manifest: str | None = None
    """The store key of the manifest."""

    copies: tuple[PublishedCopy, ...] = ()
    """What became of each destination of the job so far."""

    def published_checkpoints(self, name: str) -> dict[str, CheckpointSaved]:
        """Return the checkpoints that are published, the last one first, each by its stem.

        Args:
            name: The job's name, which is the stem of the last one.
        """
        if not self.checkpoints:
            return {}
        *earlier, last = self.checkpoints
        return {name: last} | {f"{name}-{_place(it)}": it for it in earlier if it.scheduled}

    def hash_fields(self) -> dict[str, str]:
        """Return the fields that this update sets, as fields of the job's hash."""
        values = self.model_dump(mode="json", include=self.model_fields_set)
        return {artifact_field(name): json.dumps(value) for name, value in values.items()}

    @classmethod
    def of(cls, fields: Mapping[str, str]) -> Self:
        """Return the artifacts in a job's hash.

        Raises:
            ValueError: An artifact is malformed.
        """
        values = {
            name: json.loads(fields[artifact_field(name)])
            for name in cls.model_fields
            if artifact_field(name) in fields
        }
        # In JSON mode: a strict model takes lists for tuples.
        return cls.model_validate_json(json.dumps(values))

    def updated(self, update: "JobArtifacts | None") -> Self:
        """Return the artifacts with those that the update sets."""
        if update is None:
            return self
        changes = {name: getattr(update, name) for name in update.model_fields_set}
        return self.model_copy(update=changes)


def _place(saved: CheckpointSaved) -> str:
    """Return what the names of a checkpoint's files end with, as sd-scripts spells it."""
    return f"step{saved.step:08d}" if saved.epoch is None else f"{saved.epoch:06d}"


NO_ARTIFACTS = JobArtifacts()
"""An update that sets nothing."""
