"""Uploads as a caller sees them, and the images in them."""

from collections.abc import AsyncIterator
from contextlib import AbstractContextManager
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from console.errors import ConflictError, ForbiddenError, InvalidRequestError, NotFoundError
from console.services.images.image_files import ImageFiles, UnpackedFiles
from console.services.images.incoming_bytes import Checksum
from console.services.images.upload_store import UploadStore
from console.services.threads import in_thread
from console.views import ImageView, UploadView
from tasks.access.api_keys import Caller
from tasks.data.uploads import is_upload_id
from tasks.jobs.datasets import ArchiveDatasetConfig
from tasks.jobs.job import SafeName, TrainingJob

_TENANT: TypeAdapter[str] = TypeAdapter(SafeName)
DEFAULT_TENANT: str = TrainingJob.model_fields["tenant"].default


class Uploads:
    """Uploads of callers. Another tenant's upload is answered like an unknown one.

    Args:
        store: The uploads of all tenants.
        files: Reads the images of uploads.
    """

    def __init__(self, store: UploadStore, files: ImageFiles) -> None:
        self._store, self._files = store, files

    @in_thread
    def create(
        self, caller: Caller, name: str, length: int, tenant: str | None = None
    ) -> UploadView:
        """Create an upload, to be written in chunks.

        Args:
            caller: The caller.
            name: The upload's name.
            length: Its size in bytes.
            tenant: The tenant whose jobs may name it; operators may choose any.

        Raises:
            TooLargeError: The upload is larger than the maximum.
            TooManyError: The tenant has too many incomplete uploads.
            InsufficientStorageError: The disk has too little space, or the tenant's quota.
            ForbiddenError: The tenant is not the caller's.
            InvalidRequestError: The tenant is not the name of one.
        """
        return self._store.create(_owner_of_new(caller, tenant), name, length)

    async def receive(
        self,
        caller: Caller,
        name: str,
        max_length: int | None,
        chunks: AsyncIterator[bytes],
        tenant: str | None = None,
    ) -> UploadView:
        """Store an upload that arrives in one piece; see ``UploadStore.receive``.

        Raises:
            ForbiddenError: The tenant is not the caller's.
            InvalidRequestError: The tenant is not the name of one.
        """
        return await self._store.receive(_owner_of_new(caller, tenant), name, max_length, chunks)

    async def write(
        self,
        caller: Caller,
        upload_id: str,
        offset: int,
        chunks: AsyncIterator[bytes],
        checksum: Checksum | None = None,
        count: int | None = None,
    ) -> UploadView:
        """Append to an upload; see ``UploadStore.write``."""
        tenant = await in_thread(self._owner_of)(caller, upload_id)
        return await self._store.write(tenant, upload_id, offset, chunks, checksum, count)

    async def get(self, caller: Caller, upload_id: str) -> UploadView:
        """Return an upload.

        Raises:
            NotFoundError: The caller sees no upload of this id.
        """
        tenant = await in_thread(self._owner_of)(caller, upload_id)
        return await self._store.completed(tenant, upload_id)

    @in_thread
    def all(self, caller: Caller) -> tuple[UploadView, ...]:
        """Return the uploads that the caller sees, newest first."""
        tenants = [caller.tenant] if caller.tenant else self._store.tenants()
        views = [view for tenant in tenants for view in self._store.all(tenant)]
        return tuple(sorted(views, key=lambda view: view.created_at, reverse=True))

    @in_thread
    def delete(self, caller: Caller, upload_id: str) -> None:
        """Delete an upload. Jobs do not need it after their ``prepare`` stage.

        Raises:
            NotFoundError: The caller sees no upload of this id.
            ConflictError: A request writes to the upload, or a saved dataset has its images in it.
        """
        tenant = self._owner_of(caller, upload_id)
        self._store.delete(tenant, upload_id)
        self._files.remove_thumbnails(tenant, upload_id)

    @in_thread
    def put(self, caller: Caller, name: str, path: Path, tenant: str | None = None) -> UploadView:
        """Store a local file as a complete upload, for the caller's own jobs or a tenant's.

        Raises:
            ForbiddenError: The tenant is not the caller's.
            InsufficientStorageError: The tenant's quota has too little space.
        """
        return self._store.put(_owner_of_new(caller, tenant), name, path)

    def lock(self, name: str) -> AbstractContextManager[None]:
        """Wait for a lock, which holds among all consoles, and hold it in the context."""
        return self._store.lock(name)

    async def complete(self, caller: Caller, upload_id: str) -> UploadView:
        """Return an upload that is complete.

        Raises:
            NotFoundError: The caller sees no upload of this id.
            ConflictError: The upload is incomplete.
        """
        upload = await self.get(caller, upload_id)
        if not upload.is_complete:
            raise ConflictError("the upload is incomplete; send the rest of it")
        return upload

    async def images(self, caller: Caller, upload_id: str) -> tuple[ImageView, ...]:
        """Return the images of an upload with their captions, and make their thumbnails.

        Raises:
            NotFoundError: The caller sees no upload of this id.
            ConflictError: The upload is incomplete.
            JobError: The upload is not an archive.
            TooManyError: Too many uploads are being read.
        """
        upload = await self.complete(caller, upload_id)
        async with self._files.scratch() as scratch:
            archive = await in_thread(self._store.path_of)(upload.tenant, upload.id, scratch)
            return await self._files.images(caller.account, upload.tenant, upload.id, archive)

    async def unpack(
        self,
        caller: Caller,
        upload_id: str,
        folder: Path,
        max_bytes: int,
        config: ArchiveDatasetConfig | None = None,
    ) -> UnpackedFiles:
        """Unpack the images of an upload into a folder; see ``ImageFiles.unpack``.

        Raises:
            NotFoundError: The caller sees no upload of this id.
            ConflictError: The upload is incomplete.
            JobError: The upload is not an archive.
            TooManyError: Too many uploads are being read.
        """
        upload = await self.complete(caller, upload_id)
        archive = await in_thread(self._store.path_of)(upload.tenant, upload.id, folder / "archive")
        return await self._files.unpack(caller.account, archive, folder, max_bytes, config)

    @in_thread
    def thumbnail(self, caller: Caller, upload_id: str, number: int) -> bytes:
        """Return an image's thumbnail as JPEG, after a call of ``images``.

        Raises:
            NotFoundError: The caller sees no such thumbnail.
        """
        if not is_upload_id(upload_id):
            raise NotFoundError("there is no such image")
        return self._files.thumbnail(self._owner_of(caller, upload_id), upload_id, number)

    @in_thread
    def remove_expired(self) -> None:
        """Remove expired uploads and their thumbnails."""
        for view in self._store.remove_expired():
            self._files.remove_thumbnails(view.tenant, view.id)

    def _owner_of(self, caller: Caller, upload_id: str) -> str:
        """Return the tenant among whose uploads the caller's ``upload_id`` is looked up."""
        if caller.tenant is not None:
            return caller.tenant
        return self._store.owner_of(upload_id) or DEFAULT_TENANT


def checked_tenant(tenant: str) -> str:
    """Return the name of a tenant.

    Raises:
        InvalidRequestError: It is not the name of one.
    """
    try:
        return _TENANT.validate_python(tenant)
    except ValidationError as error:
        rule = "use letters, digits, '-', '_' and single dots"
        raise InvalidRequestError("this is no name of a tenant", "tenant", rule) from error


def _owner_of_new(caller: Caller, tenant: str | None) -> str:
    """Return the tenant of an upload that the caller creates; it becomes a folder's name."""
    if caller.tenant is None:
        return checked_tenant(tenant or DEFAULT_TENANT)
    if tenant not in (None, caller.tenant):
        raise ForbiddenError("this key uploads for its own tenant only", "tenant")
    return caller.tenant
