"""Uploads of all tenants: in a folder while incomplete, in the store once complete.

Several consoles may share the folder: each continues an upload that another one has begun.
"""

import json
import logging
import shutil
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

from anyio import CancelScope

from console.errors import (
    ConflictError,
    InsufficientStorageError,
    InvalidRequestError,
    NotFoundError,
    TooLargeError,
    TooManyError,
)
from console.services.images.folder_locks import FolderLocks
from console.services.images.incoming_bytes import (
    Checksum,
    append,
    disk_errors,
    file_sha256,
    file_size,
)
from console.services.threads import in_thread
from console.views import UploadView
from tasks.data.stored_datasets import StoredDatasets
from tasks.data.uploads import (
    NoUploadError,
    StoredUpload,
    StoredUploads,
    is_upload_id,
    tenants_with_uploads,
)
from tasks.escaping import escaped, shortened
from tasks.settings.settings import Settings
from tasks.store import UPLOADS, Store

logger = logging.getLogger(__name__)

INCOMPLETE_TTL = timedelta(days=1)
"""Idle time after which an incomplete upload is removed."""
# Other processes on this machine still need space for their logs.
_MIN_FREE_BYTES = 100_000_000
# Several incomplete uploads at a time, but not a disk full of them.
_MAX_INCOMPLETE, _MAX_INCOMPLETE_SIZES = 20, 4
# Complete and incomplete ones of a tenant: each listing reads all of them.
_MAX_UPLOADS = 1000
_MAX_NAME = 200


class UploadStore:
    """Uploads of all tenants.

    Args:
        folder: The folder of incomplete uploads.
        store: The store of complete uploads.
        settings: Sizes of uploads, and the time that a complete one is kept.
    """

    def __init__(self, folder: Path, store: Store, settings: Settings) -> None:
        self._folder, self._store, self._ttl = folder, store, settings.job_ttl
        self._max_bytes, self._quota = settings.upload_max_bytes, settings.upload_quota
        self._locks = FolderLocks(folder / ".locks")
        self._complete_by_tenant: dict[str, dict[str, UploadView]] = {}

    def create(self, tenant: str, name: str, length: int) -> UploadView:
        """Create an empty upload.

        Args:
            tenant: Tenant whose jobs may name the upload.
            name: Name of the upload, for display only.
            length: Size of the complete upload in bytes.

        Raises:
            InvalidRequestError: The length is not positive.
            TooLargeError: The length is above the maximum.
            TooManyError: The tenant has too many incomplete uploads.
            InsufficientStorageError: The disk has too little space, or the tenant's quota.
        """
        with self._locks.hold(f"tenant {tenant}"):
            return self._create(tenant, name, length)

    def _create(self, tenant: str, name: str, length: int) -> UploadView:
        if length <= 0:
            raise InvalidRequestError(
                "Upload-Length must be above 0", "Upload-Length", "send a file that is not empty"
            )
        if length > self._max_bytes:
            raise TooLargeError(
                f"an upload has at most {self._max_bytes:,} bytes; this one has {length:,}"
            )
        incomplete = self._incomplete(tenant)
        total = sum(view.length for view in incomplete) + length
        if len(incomplete) >= _MAX_INCOMPLETE or total > _MAX_INCOMPLETE_SIZES * self._max_bytes:
            raise TooManyError("too many incomplete uploads; complete or delete some", 60)
        self._check_quota(tenant, length, incomplete)
        upload_id = uuid4().hex
        folder = self._path(tenant, upload_id)
        folder.mkdir(parents=True)
        if shutil.disk_usage(folder).free < length + _MIN_FREE_BYTES:
            folder.rmdir()
            raise InsufficientStorageError(
                "the disk has too little space for this upload; retry later"
            )
        now = datetime.now(UTC)
        about = {"name": _displayed(name), "length": length, "created_at": now.isoformat()}
        (folder / "data").touch()
        (folder / "about.json").write_text(json.dumps(about), "utf-8")
        return self.get(tenant, upload_id)

    async def receive(
        self, tenant: str, name: str, max_length: int | None, chunks: AsyncIterator[bytes]
    ) -> UploadView:
        """Store an upload that arrives in one piece. An error or interruption leaves nothing.

        Args:
            tenant: Tenant whose jobs may name the upload.
            name: Name of the upload, for display only.
            max_length: At least the size of the upload; None reserves space for the largest.
            chunks: The bytes.

        Raises:
            InvalidRequestError: No byte arrives.
            TooLargeError: The upload is larger than the maximum.
            TooManyError: The tenant has too many incomplete uploads.
            TooSlowError: The sender was idle for too long.
            InsufficientStorageError: The disk has too little space, or the tenant's quota.
        """
        reserved = min(max_length or self._max_bytes, self._max_bytes)
        upload_id = (await in_thread(self.create)(tenant, name, reserved)).id
        try:
            with self._lock(upload_id), disk_errors():
                data = self._path(tenant, upload_id) / "data"
                await append(data, chunks, reserved, None)
                await in_thread(self._set_length)(tenant, upload_id)
                return await in_thread(self._complete)(tenant, upload_id)
        except BaseException:
            with CancelScope(shield=True):
                await in_thread(shutil.rmtree)(self._path(tenant, upload_id), ignore_errors=True)
            raise

    def get(self, tenant: str, upload_id: str) -> UploadView:
        """Return an upload of a tenant.

        Raises:
            NotFoundError: The tenant has no upload of this id.
        """
        if is_upload_id(upload_id):
            folder = self._path(tenant, upload_id)
            try:
                about = json.loads((folder / "about.json").read_text("utf-8"))
                offset = file_size(folder / "data")
            except FileNotFoundError:
                stored = StoredUploads(self._store, tenant).get(upload_id)
                if stored is not None:
                    return _view(stored)
            else:
                return UploadView(id=upload_id, tenant=tenant, offset=offset, sha256=None, **about)
        raise NotFoundError("there is no such upload")

    def path_of(self, tenant: str, upload_id: str, folder: Path) -> Path:
        """Return the local file of a complete upload; one of another machine is downloaded first.

        Raises:
            NotFoundError: The tenant has no complete upload of this id.
        """
        try:
            return StoredUploads(self._store, tenant).path_of(f"upload:{upload_id}", folder)
        except NoUploadError as error:
            raise NotFoundError("there is no such upload") from error

    def lock(self, name: str) -> AbstractContextManager[None]:
        """Wait for a lock, which holds among all consoles, and hold it in the context."""
        return self._locks.hold(name)

    def all(self, tenant: str) -> list[UploadView]:
        """Return a tenant's uploads, newest first."""
        by_id = {view.id: view for view in self._incomplete(tenant)} | self._complete_ones(tenant)
        return sorted(by_id.values(), key=lambda view: view.created_at, reverse=True)

    def tenants(self) -> list[str]:
        """Return the tenants that have uploads."""
        local = {path.parent.name for path in self._folder.glob("*/*")}
        return sorted({*local, *tenants_with_uploads(self._store)})

    def owner_of(self, upload_id: str) -> str | None:
        """Return the tenant that has an upload of this id."""
        if not is_upload_id(upload_id):
            return None
        for folder in self._folder.glob(f"*/{upload_id}"):
            return folder.parent.name
        name = f"/{upload_id}.json"
        found = (key.split("/")[1] for key in self._store.keys(UPLOADS) if key.endswith(name))
        return next(found, None)

    async def write(
        self,
        tenant: str,
        upload_id: str,
        offset: int,
        chunks: AsyncIterator[bytes],
        checksum: Checksum | None = None,
        count: int | None = None,
    ) -> UploadView:
        """Append to an upload. An interruption keeps received bytes, unless they have a checksum.

        Args:
            tenant: The tenant.
            upload_id: The upload.
            offset: Number of bytes received so far, as the sender knows it.
            chunks: The bytes to append.
            checksum: Checksum of all these bytes.
            count: Number of these bytes, if the sender gives it.

        Raises:
            NotFoundError: The tenant has no upload of this id.
            ConflictError: The offset differs, or another request writes to the upload.
            TooLargeError: The sender sends more bytes than the upload's length.
            ChecksumError: The checksum differs.
            TooSlowError: The sender was idle for too long.
            InsufficientStorageError: The disk is full.
        """
        # Before the lock: another tenant's upload is unknown, also while it is written to.
        await in_thread(self.get)(tenant, upload_id)
        with self._lock(upload_id):
            view = await in_thread(self.get)(tenant, upload_id)
            if view.offset != offset:
                raise ConflictError(
                    f"Upload-Offset is {offset}, but {view.offset} bytes arrived", "Upload-Offset"
                )
            if count is not None and count > view.length - offset:
                raise TooLargeError("the request has more bytes than Upload-Length allows")
            if view.is_complete:
                return view
            data = self._path(tenant, upload_id) / "data"
            with disk_errors():
                await append(data, chunks, view.length - view.offset, checksum)
            return await in_thread(self._complete)(tenant, upload_id)

    async def completed(self, tenant: str, upload_id: str) -> UploadView:
        """Return an upload; move it to the store if that failed when its last byte arrived.

        Raises:
            NotFoundError: The tenant has no upload of this id.
            StoreError: The upload cannot be moved to the store.
        """
        view = await in_thread(self.get)(tenant, upload_id)
        if view.is_complete or view.offset < view.length:
            return view
        with self._locks.try_hold(upload_id) as is_free:
            return await in_thread(self._complete)(tenant, upload_id) if is_free else view

    def put(self, tenant: str, name: str, path: Path) -> UploadView:
        """Store a local file as a complete upload.

        Raises:
            InsufficientStorageError: The tenant's quota has too little space.
        """
        stored, sha256 = StoredUploads(self._store, tenant), file_sha256(path)
        # Two of these at a time could exceed the quota together.
        with self._locks.hold(f"tenant {tenant}"):
            self._check_quota(tenant, path.stat().st_size, self._incomplete(tenant))
            return _view(stored.put(uuid4().hex, _displayed(name), path, sha256))

    def delete(self, tenant: str, upload_id: str) -> None:
        """Delete an upload.

        Raises:
            NotFoundError: The tenant has no upload of this id.
            ConflictError: A request writes to the upload, or a saved dataset has its images in it.
        """
        self.get(tenant, upload_id)
        dataset = StoredDatasets(self._store, tenant).current_uploads().get(upload_id)
        if dataset is not None:
            raise ConflictError(
                f"the upload has the images of the saved dataset {dataset.name}; delete the dataset"
            )
        with self._lock(upload_id):
            shutil.rmtree(self._path(tenant, upload_id), ignore_errors=True)
            StoredUploads(self._store, tenant).delete(upload_id)

    def remove_expired(self) -> list[UploadView]:
        """Remove expired uploads and return them."""
        removed = []
        for tenant in self.tenants():
            held = StoredDatasets(self._store, tenant).held_uploads(self._ttl)
            for view in self.all(tenant):
                if view.id in held:
                    continue
                if view.is_complete:
                    is_expired = datetime.now(UTC) - view.created_at > self._ttl
                else:
                    is_expired = self._idle_s(tenant, view.id) > INCOMPLETE_TTL.total_seconds()
                if is_expired:
                    # Another console may write to it, or have removed it.
                    with suppress(ConflictError, NotFoundError):
                        self.delete(tenant, view.id)
                        logger.info("removed expired upload %s of tenant %s", view.id, tenant)
                        removed.append(view)
        return removed

    def _idle_s(self, tenant: str, upload_id: str) -> float:
        try:
            return time.time() - (self._path(tenant, upload_id) / "data").stat().st_mtime
        except FileNotFoundError:  # it has just been completed or deleted
            return 0.0

    def _check_quota(self, tenant: str, length: int, incomplete: list[UploadView]) -> None:
        """Refuse an upload for which the tenant's quota has too little space.

        Raises:
            InsufficientStorageError: It has too little.
        """
        complete = self._store.sizes(f"{UPLOADS}/{tenant}")
        uploads = len(incomplete) + sum(key.endswith(".json") for key in complete)
        used = sum(view.length for view in incomplete) + sum(complete.values())
        if used + length > self._quota or uploads >= _MAX_UPLOADS:
            raise InsufficientStorageError(
                f"tenant {tenant} has {uploads:,} of {_MAX_UPLOADS:,} uploads with {used:,} of "
                f"{self._quota:,} bytes; delete some"
            )

    def _incomplete(self, tenant: str) -> list[UploadView]:
        folder = self._folder / tenant
        names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
        views = []
        for name in names:
            with suppress(NotFoundError):  # it is being deleted
                views.append(self.get(tenant, name))
        return [view for view in views if not view.is_complete]

    def _complete_ones(self, tenant: str) -> dict[str, UploadView]:
        """Return the complete uploads by id; only those that are new are read."""
        stored, known = StoredUploads(self._store, tenant), self._complete_by_tenant.get(tenant, {})
        ids = set(stored.ids())
        read = {upload_id: stored.get(upload_id) for upload_id in ids if upload_id not in known}
        new = {upload_id: _view(upload) for upload_id, upload in read.items() if upload is not None}
        views = {upload_id: view for upload_id, view in (known | new).items() if upload_id in ids}
        self._complete_by_tenant[tenant] = views
        return views

    def _set_length(self, tenant: str, upload_id: str) -> None:
        """Record the bytes that have arrived as the length of an upload.

        Raises:
            InvalidRequestError: There are none.
        """
        folder = self._path(tenant, upload_id)
        length = (folder / "data").stat().st_size
        if not length:
            raise InvalidRequestError("the file is empty", "file", "send the file's bytes")
        about = json.loads((folder / "about.json").read_text("utf-8"))
        (folder / "about.json").write_text(json.dumps({**about, "length": length}), "utf-8")

    def _complete(self, tenant: str, upload_id: str) -> UploadView:
        """Move an upload to the store once all its bytes have arrived."""
        view = self.get(tenant, upload_id)
        if view.is_complete or view.offset < view.length:
            return view
        data = self._path(tenant, upload_id) / "data"
        uploads, sha256 = StoredUploads(self._store, tenant), file_sha256(data)
        stored = uploads.put(upload_id, view.name, data, sha256)
        shutil.rmtree(data.parent)
        return _view(stored)

    @contextmanager
    def _lock(self, upload_id: str) -> Iterator[None]:
        with self._locks.try_hold(upload_id) as is_free:
            if not is_free:
                raise ConflictError("another request writes to this upload")
            yield

    def _path(self, tenant: str, upload_id: str) -> Path:
        return self._folder / tenant / upload_id


def _view(stored: StoredUpload) -> UploadView:
    return UploadView(
        id=stored.id,
        name=stored.name,
        tenant=stored.tenant,
        length=stored.size,
        offset=stored.size,
        sha256=stored.sha256,
        created_at=stored.created,
    )


def _displayed(name: str) -> str:
    """Return a sender's name for an upload, safe to display."""
    return shortened(escaped(name.strip()), _MAX_NAME) or "upload"
