"""Saved datasets as a caller sees them: named images that any job may use, and that are edited."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TypeVar
from uuid import uuid4

from console.errors import ConflictError, ForbiddenError, InvalidRequestError, NotFoundError
from console.services.images.dataset_checks import CheckedDataset, DatasetChecks
from console.services.images.dataset_images import DatasetImages
from console.services.images.dataset_views import (
    ChangedDatasetView,
    SavedDatasetDetails,
    SavedDatasetView,
    view_of,
)
from console.services.images.image_collection import ImageCollection, NewFile
from console.services.images.image_files import ImageFiles
from console.services.images.uploads import DEFAULT_TENANT, Uploads, checked_tenant
from console.services.threads import in_thread
from console.views import DatasetView
from tasks.access.api_keys import Caller
from tasks.data.stored_datasets import StoredDataset, StoredDatasets, tenants_with_datasets
from tasks.escaping import escaped, shortened
from tasks.settings.settings import Settings
from tasks.state.audit import Action, AuditLog
from tasks.store import Store

T = TypeVar("T")

_MAX_NAME = 100
# Of a tenant: each listing reads all of them.
_MAX_DATASETS = 500
_CHANGED = "another user has changed the dataset meanwhile; open it again"


class Datasets:
    """Saved datasets of callers. Another tenant's dataset is answered like an unknown one.

    Args:
        settings: How long former revisions are kept, and the size of datasets.
        store: The store of the datasets.
        uploads: Their images.
        files: Unpacks archives.
        checks: Checks images.
        audit: The audit log.
    """

    def __init__(
        self,
        settings: Settings,
        store: Store,
        uploads: Uploads,
        files: ImageFiles,
        checks: DatasetChecks,
        audit: AuditLog,
    ) -> None:
        self._settings, self._store, self._uploads = settings, store, uploads
        self._files, self._checks, self._audit = files, checks, audit
        self._images = DatasetImages(settings, uploads, files, checks)

    async def create(
        self, caller: Caller, name: str, upload_id: str, tenant: str | None = None
    ) -> ChangedDatasetView:
        """Save the images of an upload as a dataset.

        Args:
            caller: The caller.
            name: The dataset's name.
            upload_id: The upload, which is copied: it may be deleted afterwards.
            tenant: The tenant of the dataset; None for the upload's.

        Raises:
            NotFoundError: The caller sees no upload of this id.
            ConflictError: The upload is incomplete.
            ForbiddenError: The tenant is not the caller's.
            InvalidRequestError: The name or the tenant is none, or there is no image.
            InsufficientStorageError: The tenant's quota has too little space.
            JobError: The upload is not an archive that can be read.
        """
        upload = await self._uploads.get(caller, upload_id)
        async with self._files.scratch() as scratch:
            made, notes = await self._images.copy(caller, upload_id, scratch)
            view = await self.save(caller, name, made, tenant or upload.tenant)
        return ChangedDatasetView(**view.model_dump(), notes=tuple(notes))

    async def save(
        self, caller: Caller, name: str, images: ImageCollection, tenant: str | None = None
    ) -> SavedDatasetView:
        """Save loose images as a dataset.

        Raises:
            ForbiddenError: The tenant is not the caller's.
            InvalidRequestError: The name or the tenant is none, or there is no image.
            InsufficientStorageError: The tenant's quota has too little space.
        """
        owner = self._owner(caller, tenant)
        name = _checked_name(name)
        if len(await in_thread(StoredDatasets(self._store, owner).all)()) >= _MAX_DATASETS:
            raise ConflictError(f"tenant {owner} has {_MAX_DATASETS:,} datasets; delete some")
        async with self._images.uploaded(caller, owner, name, images) as new:
            assert new is not None, "there are no former images"
            now, report = datetime.now(UTC), new.report
            dataset = StoredDataset(
                id=uuid4().hex, tenant=owner, name=name, upload=new.upload.id, images=new.count,
                size=new.upload.length, created=now, updated=now,
                report=None if report is None else report.model_dump(mode="json"),
            )  # fmt: skip
            await in_thread(StoredDatasets(self._store, owner).put)(dataset)
        return view_of(dataset)

    @in_thread
    def all(self, caller: Caller) -> tuple[SavedDatasetView, ...]:
        """Return the datasets that the caller sees, the last changed first."""
        tenants = [caller.tenant] if caller.tenant else tenants_with_datasets(self._store)
        found = [it for tenant in tenants for it in StoredDatasets(self._store, tenant).all()]
        return tuple(map(view_of, sorted(found, key=lambda it: it.updated, reverse=True)))

    async def get(self, caller: Caller, dataset_id: str) -> SavedDatasetDetails:
        """Return a dataset with its report and images.

        Raises:
            NotFoundError: The caller sees no dataset of this id.
            TooManyError: Too many uploads are being read.
            JobError: The images cannot be read.
        """
        dataset = await in_thread(self._find)(caller, dataset_id)
        images = await self._uploads.images(caller, dataset.upload)
        report = None if dataset.report is None else DatasetView.model_validate(dataset.report)
        fields = view_of(dataset).model_dump()
        return SavedDatasetDetails(**fields, report=report, contents=images)

    @in_thread
    def view(self, caller: Caller, dataset_id: str) -> SavedDatasetView:
        """Return a dataset.

        Raises:
            NotFoundError: The caller sees no dataset of this id.
        """
        return view_of(self._find(caller, dataset_id))

    async def update(
        self,
        caller: Caller,
        dataset_id: str,
        name: str | None = None,
        captions: Mapping[str, str] | None = None,
    ) -> SavedDatasetView:
        """Rename a dataset and write captions: both, or neither.

        Args:
            caller: The caller.
            dataset_id: The dataset.
            name: Its new name; None keeps it.
            captions: Captions by the names of images, of which an empty one removes it; None keeps
                all.

        Raises:
            NotFoundError: The caller sees no dataset of this id.
            InvalidRequestError: The name is none, or the dataset has no image of a name.
            ConflictError: Another request has changed the dataset.
            InsufficientStorageError: The tenant's quota has too little space.
        """
        name = None if name is None else _checked_name(name)
        if captions is None:
            return await in_thread(self._rename)(caller, dataset_id, name)

        def write(images: ImageCollection) -> None:
            _check_names(images, captions)
            for image, caption in captions.items():
                images.write_caption(image, caption)

        return (await self._edit(caller, dataset_id, write, name))[0]

    async def remove_images(
        self, caller: Caller, dataset_id: str, names: Collection[str]
    ) -> SavedDatasetView:
        """Remove images with their captions.

        Raises:
            NotFoundError: The caller sees no dataset of this id.
            InvalidRequestError: It has no image of a name, or no other one.
            ConflictError: Another request has changed the dataset.
            InsufficientStorageError: The tenant's quota has too little space.
        """

        def remove(images: ImageCollection) -> None:
            _check_names(images, names)
            for name in names:
                images.remove(name)

        return (await self._edit(caller, dataset_id, remove))[0]

    async def add_files(
        self, caller: Caller, dataset_id: str, files: Sequence[NewFile]
    ) -> ChangedDatasetView:
        """Add images and captions, or those of archives.

        Raises:
            NotFoundError: The caller sees no dataset of this id.
            ConflictError: Another request has changed the dataset.
            InsufficientStorageError: The tenant's quota has too little space.
            JobError: An archive cannot be read.
        """
        async with self._files.scratch() as scratch:
            loose, notes = await self._images.loose(caller, files, scratch)
            view, added = await self._edit(caller, dataset_id, lambda images: images.add(loose))
        return ChangedDatasetView(**view.model_dump(), notes=(*notes, *added))

    async def create_from_files(
        self, caller: Caller, name: str, files: Sequence[NewFile], tenant: str | None = None
    ) -> ChangedDatasetView:
        """Save images and captions, or those of archives, as a dataset.

        Raises:
            ForbiddenError: The tenant is not the caller's.
            InvalidRequestError: The name or the tenant is none, or there is no image.
            InsufficientStorageError: The tenant's quota has too little space.
            JobError: An archive cannot be read.
        """
        async with self._files.scratch() as scratch:
            loose, notes = await self._images.loose(caller, files, scratch)
            images = self._images.collection(scratch)
            added = await in_thread(images.add)(loose)
            view = await self.save(caller, name, images, tenant)
        return ChangedDatasetView(**view.model_dump(), notes=(*notes, *added))

    async def replace_images(
        self, caller: Caller, dataset_id: str, name: str, images: ImageCollection, edited: str
    ) -> SavedDatasetView:
        """Make loose images the present ones of a dataset, and name it; the same change nothing.

        Args:
            caller: The caller.
            dataset_id: The dataset.
            name: Its name.
            images: The images.
            edited: The upload of the revision that they are an edited copy of.

        Raises:
            NotFoundError: The caller sees no dataset of this id.
            InvalidRequestError: There is no image, or the name is none.
            ConflictError: Another request has changed the dataset meanwhile.
            InsufficientStorageError: The tenant's quota has too little space.
        """
        name, dataset = _checked_name(name), await in_thread(self._find)(caller, dataset_id)
        if dataset.upload != edited:
            raise ConflictError(_CHANGED)
        return await self._revise(caller, dataset, images, name)

    @in_thread
    def delete(self, caller: Caller, dataset_id: str) -> None:
        """Delete a dataset. Jobs that name it already keep its images until they have read them.

        Raises:
            NotFoundError: The caller sees no dataset of this id.
        """
        with self._uploads.lock(f"dataset {dataset_id}"):
            dataset = self._find(caller, dataset_id)
            about = {"tenant": dataset.tenant, "name": dataset.name}
            with self._audit.recording(caller.actor, Action.DATASET_DELETE, dataset_id, **about):
                deleted = dataset.model_copy(update={"deleted": datetime.now(UTC)})
                StoredDatasets(self._store, dataset.tenant).put(deleted)

    @in_thread
    def remove_deleted(self) -> None:
        """Remove what is left of deleted datasets, once no job can wait for their images."""
        since = datetime.now(UTC) - self._settings.job_ttl - timedelta(hours=1)
        for tenant in tenants_with_datasets(self._store):
            datasets = StoredDatasets(self._store, tenant)
            for dataset in datasets.all(deleted=True):
                if dataset.deleted is not None and dataset.deleted < since:
                    datasets.remove(dataset.id)

    async def check(self, caller: Caller, folder: Path) -> CheckedDataset:
        """Check loose images for any job; see ``DatasetChecks.check_images``.

        Raises:
            TooManyError: The account has used up its share of checks.
        """
        tenant = caller.tenant or DEFAULT_TENANT
        return await self._checks.check_images(caller.account, tenant, folder)

    async def _edit(
        self,
        caller: Caller,
        dataset_id: str,
        change: Callable[[ImageCollection], T],
        name: str | None = None,
    ) -> tuple[SavedDatasetView, T]:
        """Change a copy of a dataset's images, and make it the current revision."""
        dataset = await in_thread(self._find)(caller, dataset_id)
        async with self._files.scratch() as scratch:
            images, _ = await self._images.copy(caller, dataset.upload, scratch)
            result = await in_thread(change)(images)
            return await self._revise(caller, dataset, images, name), result

    async def _revise(
        self, caller: Caller, dataset: StoredDataset, images: ImageCollection, name: str | None
    ) -> SavedDatasetView:
        former = (await self._uploads.get(caller, dataset.upload)).sha256 or ""
        tenant, upload_name = dataset.tenant, name or dataset.name
        async with self._images.uploaded(caller, tenant, upload_name, images, former) as new:
            if new is None:
                return await in_thread(self._rename)(caller, dataset.id, name)

            def put() -> StoredDataset:
                with self._uploads.lock(f"dataset {dataset.id}"):
                    present = self._find(caller, dataset.id)
                    if present.upload != dataset.upload:
                        raise ConflictError(_CHANGED)
                    report = None if new.report is None else new.report.model_dump(mode="json")
                    upload, named = new.upload, present.named(name or present.name)
                    revised = named.revised(upload.id, new.count, upload.length, report)
                    StoredDatasets(self._store, tenant).put(revised)
                    return revised

            return view_of(await in_thread(put)())

    def _rename(self, caller: Caller, dataset_id: str, name: str | None) -> SavedDatasetView:
        """Rename a dataset, if there is a new name, and return it."""
        with self._uploads.lock(f"dataset {dataset_id}"):
            dataset = self._find(caller, dataset_id)
            if name not in (None, dataset.name):
                dataset = dataset.named(name or dataset.name)
                StoredDatasets(self._store, dataset.tenant).put(dataset)
        return view_of(dataset)

    def _find(self, caller: Caller, dataset_id: str) -> StoredDataset:
        tenants = [caller.tenant] if caller.tenant else tenants_with_datasets(self._store)
        for tenant in tenants:
            found = StoredDatasets(self._store, tenant).find(dataset_id)
            if found is not None:
                return found
        raise NotFoundError("there is no such dataset")

    def _owner(self, caller: Caller, tenant: str | None) -> str:
        if caller.tenant is None:
            return checked_tenant(tenant or DEFAULT_TENANT)
        if tenant not in (None, caller.tenant):
            raise ForbiddenError("this key saves datasets for its own tenant only", "tenant")
        return caller.tenant


def _checked_name(name: str) -> str:
    """Return the name of a dataset, safe to display.

    Raises:
        InvalidRequestError: It is empty or too long.
    """
    text = escaped(name.strip())
    if not 0 < len(text) <= _MAX_NAME:
        raise InvalidRequestError(
            f"a dataset's name has 1 to {_MAX_NAME} characters", "name", "choose another name"
        )
    return text


def _check_names(images: ImageCollection, names: Iterable[str]) -> None:
    """Refuse names of images that a dataset does not have, all of them at once.

    Raises:
        InvalidRequestError: There are such names.
    """
    unknown = sorted({*names} - {*images.names()})
    if unknown:
        listed = ", ".join(shortened(escaped(name), 60) for name in unknown[:10])
        raise InvalidRequestError(f"the dataset has no image {listed}", "images", "check the names")
