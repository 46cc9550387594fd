"""Saved datasets: named images with captions, kept apart from jobs in the store.

The images of a dataset are an upload, and each change makes another one: its current revision. A
job names a dataset as ``dataset:ID``; when it is submitted, the upload of the current revision
takes that place, so that later changes do not change the job.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from pydantic import BaseModel, Field

from tasks.data.uploads import StoredUploads, upload_id_in
from tasks.errors import InvalidJobError, MissingObjectError, Problem
from tasks.jobs.field_metadata import Location, marker_of, options_of
from tasks.jobs.job import TrainingJob
from tasks.store import SAVED_DATASETS, Store, saved_dataset_key
from tasks.strict_model import StrictModel

_SCHEME = "dataset:"
_ID = re.compile(r"[0-9a-f]{32}")
# Former revisions that a job may be submitted with again.
_MAX_FORMER = 100


class FormerRevision(StrictModel):
    """A revision that another one has replaced."""

    upload: str
    replaced: datetime
    """When it was replaced: jobs that name it may still wait."""


class StoredDataset(StrictModel):
    """A saved dataset."""

    id: str
    tenant: str
    name: str
    upload: str
    """The id of the upload of the current revision."""
    revision: int = 1
    images: int
    """The number of images."""
    size: int
    """The size of the upload in bytes."""
    created: datetime
    updated: datetime
    former: tuple[FormerRevision, ...] = ()
    """Former revisions, the latest first."""
    deleted: datetime | None = None
    """When it was deleted; jobs that name it may still wait."""
    report: dict[str, Any] | None = Field(default=None)
    """The report on the current revision."""

    def revised(
        self, upload: str, images: int, size: int, report: dict[str, Any] | None
    ) -> "StoredDataset":
        """Return the dataset with another revision."""
        now = datetime.now(UTC)
        former = (FormerRevision(upload=self.upload, replaced=now), *self.former)[:_MAX_FORMER]
        changed = {
            "upload": upload, "revision": self.revision + 1, "images": images, "size": size,
            "updated": now, "former": former, "report": report,
        }  # fmt: skip
        return self.model_copy(update=changed)

    def named(self, name: str) -> "StoredDataset":
        """Return the dataset with another name."""
        return self.model_copy(update={"name": name, "updated": datetime.now(UTC)})

    def has_had(self, upload_id: str) -> bool:
        """Return whether an upload is, or was, a revision."""
        return upload_id == self.upload or upload_id in {it.upload for it in self.former}


def is_dataset(source: str) -> bool:
    """Return whether a source names a saved dataset, valid or not."""
    return source.startswith(_SCHEME)


def dataset_id_in(source: str) -> str | None:
    """Return the id of a ``dataset:ID`` source; None if it is not one."""
    dataset_id = source.removeprefix(_SCHEME)
    return dataset_id if source != dataset_id and is_dataset_id(dataset_id) else None


def is_dataset_id(text: str) -> bool:
    """Return whether a text has the form of a dataset's id."""
    return _ID.fullmatch(text) is not None


@dataclass(frozen=True)
class StoredDatasets:
    """The saved datasets of one tenant.

    Attributes:
        store: The store that has them.
        tenant: Their owner.

    Raises:
        UsageError: The tenant's name is none; it becomes a part of paths.
    """

    store: Store
    tenant: str

    def __post_init__(self) -> None:
        """Refuse a name that would lead to another tenant's datasets, or out of the store."""
        StoredUploads(self.store, self.tenant)

    def find(self, dataset_id: str, *, deleted: bool = False) -> StoredDataset | None:
        """Return a dataset; None if there is none of this id.

        Args:
            dataset_id: Its id.
            deleted: Whether one that was deleted recently is returned too.
        """
        if not is_dataset_id(dataset_id):
            return None
        try:
            document = self.store.get(saved_dataset_key(self.tenant, dataset_id))
        except MissingObjectError:
            return None
        found = StoredDataset.model_validate_json(document)
        return found if deleted or found.deleted is None else None

    def all(self, *, deleted: bool = False) -> list[StoredDataset]:
        """Return the datasets; see ``find``."""
        keys = self.store.keys(f"{SAVED_DATASETS}/{self.tenant}")
        ids = [key.rpartition("/")[2].removesuffix(".json") for key in keys]
        found = (self.find(dataset_id, deleted=deleted) for dataset_id in ids)
        return [dataset for dataset in found if dataset is not None]

    def put(self, dataset: StoredDataset) -> None:
        """Store a dataset, or replace it."""
        key = saved_dataset_key(self.tenant, dataset.id)
        self.store.put(key, dataset.model_dump_json().encode())

    def remove(self, dataset_id: str) -> None:
        """Remove a dataset for good."""
        self.store.delete([saved_dataset_key(self.tenant, dataset_id)])

    def current_uploads(self) -> dict[str, StoredDataset]:
        """Return the datasets by the uploads of their current revisions."""
        return {dataset.upload: dataset for dataset in self.all()}

    def held_uploads(self, ttl: timedelta) -> set[str]:
        """Return the uploads that do not expire: current ones, and those that jobs may wait for.

        Args:
            ttl: How long a job may wait for an upload.
        """
        since = datetime.now(UTC) - ttl
        held = set()
        for dataset in self.all(deleted=True):
            if dataset.deleted is None or dataset.deleted > since:
                held.add(dataset.upload)
            held |= {it.upload for it in dataset.former if it.replaced > since}
        return held


def tenants_with_datasets(store: Store) -> list[str]:
    """Return the tenants that have saved datasets, sorted.

    Raises:
        StoreError: The store cannot be read.
    """
    return sorted({key.split("/")[1] for key in store.keys(SAVED_DATASETS) if key.count("/") == 2})


def with_uploads(
    job: TrainingJob,
    open_store: Callable[[], Store] | None,
    find_recorded: Callable[[], TrainingJob | None] = lambda: None,
) -> TrainingJob:
    """Return a job with the uploads of the datasets that it names.

    Args:
        job: The job.
        open_store: Returns the store of the datasets, if there is one; called only if the job names
            one.
        find_recorded: Returns the job of the same id that was submitted before, if there is one: it
            keeps the revision that it began with.

    Raises:
        InvalidJobError: A dataset does not exist, or is another tenant's.
        StoreError: The store cannot be read.
    """
    named = [*_named_datasets(job)]
    if not named:
        return job
    store = None if open_store is None else open_store()
    recorded, problems = find_recorded(), []
    for path, source in named:
        dataset_id = dataset_id_in(source)
        found = None
        if store is not None and dataset_id is not None:
            found = StoredDatasets(store, job.tenant).find(dataset_id, deleted=recorded is not None)
        if found is None:
            message = f"tenant {job.tenant} has no saved dataset {source.removeprefix(_SCHEME)}"
            problems.append(Problem(path, message, "write dataset: and the id of one"))
            continue
        upload = found.upload
        former = None if recorded is None else upload_id_in(str(_value_at(recorded, path)))
        if former is not None and found.has_had(former):
            upload = former
        job = _with_value(job, path.split("."), f"upload:{upload}")
    if problems:
        raise InvalidJobError(problems)
    return job


def _named_datasets(job: TrainingJob) -> Iterator[tuple[str, str]]:
    """Yield the saved datasets that a job names, each with the option's path."""
    for option in options_of(job):
        if marker_of(option.field, Location) is Location.ARCHIVE and is_dataset(str(option.value)):
            yield option.path, option.value


def _value_at(model: Any, path: str) -> Any:
    for name in path.split("."):
        model = getattr(model, name, None)
    return model


def _with_value(model: Any, path: list[str], value: str) -> Any:
    """Return a copy of a model with another value at a path."""
    assert isinstance(model, BaseModel)
    name, *rest = path
    new = _with_value(getattr(model, name), rest, value) if rest else value
    return model.model_copy(update={name: new})
