"""Uploads: kept on this machine while they come, piece by piece, and in the store once whole."""

import asyncio
import errno
import hashlib
import json
import logging
import shutil
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

from anyio import to_thread

from console.errors import (
    ChecksumError,
    ConflictError,
    InsufficientStorageError,
    NotFoundError,
    TooLargeError,
    TooManyError,
    TooSlowError,
)
from console.views import UploadView
from tasks.data.uploads import (
    StoredUpload,
    StoredUploads,
    is_upload_id,
    tenants_with_uploads,
)
from tasks.errors import InvalidJobError, Problem
from tasks.store import Store

logger = logging.getLogger(__name__)

# An upload that nobody goes on with for so long is given up.
UNFINISHED_FOR = timedelta(days=1)
SILENCE_S = 60.0
"""A sender that is silent for so long is gone, and another request may go on."""
# So that others can still write their logs.
_KEPT_FREE_BYTES = 100_000_000
# Beside the one at work: several at a time, but no disk full of them.
_MOST_UNFINISHED = 20
_TIMES_THE_MOST = 4
_WRITE_BYTES = 2**20
_LONGEST_NAME = 200


CHECKSUMS = ("sha1", "sha256")
"""What pieces may be checked by."""


@dataclass(frozen=True)
class Checksum:
    """What a piece should have.

    Attributes:
        algorithm: One of ``CHECKSUMS``.
        digest: Its digest.
    """

    algorithm: str
    digest: bytes


class Uploads:
    """The uploads of all tenants. One process only may write to a folder.

    Args:
        folder: Where those are that are not whole.
        store: Where those are that are.
        most_bytes: The most that one may take.
        life: How long a whole one is kept.
    """

    def __init__(self, folder: Path, store: Store, most_bytes: int, life: timedelta) -> None:
        self._folder, self._store = folder, store
        self.most_bytes, self._life = most_bytes, life
        self._at_work: set[str] = set()

    def create(self, tenant: str, name: str, length: int) -> UploadView:
        """Begin one.

        Raises:
            TooLargeError: It would take more than is allowed.
            TooManyError: The tenant has too many that are not whole.
            InsufficientStorageError: The disk would be full.
        """
        if length <= 0:
            raise InvalidJobError([Problem("Upload-Length", "must be above 0")])
        if length > self.most_bytes:
            raise TooLargeError(f"an upload may take {self.most_bytes:,} bytes, not {length:,}")
        unfinished = self._unfinished(tenant)
        held = sum(view.length for view in unfinished)
        if len(unfinished) >= _MOST_UNFINISHED or (
            held + length > _TIMES_THE_MOST * self.most_bytes
        ):
            problem = "too many uploads are not finished; go on with them, or delete them"
            raise TooManyError(problem, 60)
        upload_id = uuid4().hex
        folder = self._path(tenant, upload_id)
        folder.mkdir(parents=True)
        if shutil.disk_usage(folder).free < length + _KEPT_FREE_BYTES:
            folder.rmdir()
            raise InsufficientStorageError("there is no room for this upload now")
        now = datetime.now(UTC)
        about = {"name": _shown(name), "length": length, "created": now.isoformat()}
        (folder / "data").touch()
        (folder / "about.json").write_text(json.dumps(about), "utf-8")
        return self.get(tenant, upload_id)

    def get(self, tenant: str, upload_id: str) -> UploadView:
        """One of a tenant's.

        Raises:
            NotFoundError: It has none of this id.
        """
        if is_upload_id(upload_id):
            folder = self._path(tenant, upload_id)
            try:
                about = json.loads((folder / "about.json").read_text("utf-8"))
                offset = (folder / "data").stat().st_size
            except FileNotFoundError:
                stored = StoredUploads(self._store, tenant).get(upload_id)
                if stored is not None:
                    return _view(stored)
            else:
                return UploadView(id=upload_id, tenant=tenant, offset=offset, sha256=None, **about)
        raise NotFoundError("there is no such upload")

    def all(self, tenant: str) -> list[UploadView]:
        """A tenant's, the newest first."""
        whole = [_view(it) for it in StoredUploads(self._store, tenant).all()]
        found = {it.id: it for it in [*self._unfinished(tenant), *whole]}
        return sorted(found.values(), key=lambda it: it.created, reverse=True)

    def tenants(self) -> list[str]:
        """The tenants that have any."""
        here = (it.name for it in self._folder.iterdir()) if self._folder.is_dir() else ()
        return sorted({*here, *tenants_with_uploads(self._store)})

    async def write(
        self,
        tenant: str,
        upload_id: str,
        offset: int,
        pieces: AsyncIterator[bytes],
        checksum: Checksum | None = None,
        coming: int | None = None,
    ) -> UploadView:
        """Go on with one; what came is kept, however this ends, unless it had to be checked.

        Args:
            tenant: Whose.
            upload_id: Which.
            offset: How many bytes the sender believes to be here.
            pieces: What follows.
            checksum: That of all that follows now.
            coming: How many bytes that is, where the sender says so before.

        Raises:
            NotFoundError: There is no such upload.
            ConflictError: Others are here, or another request writes to it.
            TooLargeError: More came than was said.
            ChecksumError: Other bytes came than were sent.
            TooSlowError: Nothing came for long.
            InsufficientStorageError: The disk is full.
        """
        with self._alone(upload_id):
            view = await to_thread.run_sync(self.get, tenant, upload_id)
            if view.offset != offset:
                raise ConflictError(f"{view.offset} bytes are here, and not {offset}")
            if view.whole:
                return view
            data = self._path(tenant, upload_id) / "data"
            try:
                await _append(data, _in_time(pieces), view.length - view.offset, checksum)
            except OSError as error:
                if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                    raise
                raise InsufficientStorageError(
                    "there is no room for more of this upload now"
                ) from error
            return await to_thread.run_sync(self._finished, tenant, upload_id)

    async def finished(self, tenant: str, upload_id: str) -> UploadView:
        """One of a tenant's, moved to the store where that could not be done before.

        Raises:
            NotFoundError: It has none of this id.
            StoreError: It cannot be moved there.
        """
        view = await to_thread.run_sync(self.get, tenant, upload_id)
        if view.whole or view.offset < view.length or upload_id in self._at_work:
            return view
        with self._alone(upload_id):
            return await to_thread.run_sync(self._finished, tenant, upload_id)

    def put(self, tenant: str, name: str, path: Path) -> UploadView:
        """Take a whole file of this machine's as an upload."""
        stored = StoredUploads(self._store, tenant)
        return _view(stored.put(uuid4().hex, _shown(name), path, _sha256(path)))

    def delete(self, tenant: str, upload_id: str) -> None:
        """Remove one.

        Raises:
            NotFoundError: There is no such upload.
            ConflictError: A request writes to it.
        """
        with self._alone(upload_id):
            self.get(tenant, upload_id)
            shutil.rmtree(self._path(tenant, upload_id), ignore_errors=True)
            StoredUploads(self._store, tenant).delete(upload_id)

    def sweep(self) -> list[UploadView]:
        """Remove what was given up, and what has been kept for its life time; tells which."""
        gone = []
        for tenant in self.tenants():
            for view in self.all(tenant):
                if view.whole:
                    old = datetime.now(UTC) - view.created > self._life
                else:
                    data = self._path(tenant, view.id) / "data"
                    idle_s = time.time() - data.stat().st_mtime
                    old = idle_s > UNFINISHED_FOR.total_seconds()
                if old and view.id not in self._at_work:
                    logger.info("removing the upload %s of %s", view.id, tenant)
                    self.delete(tenant, view.id)
                    gone.append(view)
        return gone

    def _unfinished(self, tenant: str) -> list[UploadView]:
        folder = self._folder / tenant
        names = sorted(it.name for it in folder.iterdir()) if folder.is_dir() else []
        found = []
        for name in names:
            try:
                found.append(self.get(tenant, name))
            except NotFoundError:  # it is being removed
                continue
        return [view for view in found if not view.whole]

    def _finished(self, tenant: str, upload_id: str) -> UploadView:
        """The upload, in the store where it is whole."""
        view = self.get(tenant, upload_id)
        if view.whole or view.offset < view.length:
            return view
        folder = self._path(tenant, upload_id)
        data = folder / "data"
        stored = StoredUploads(self._store, tenant).put(upload_id, view.name, data, _sha256(data))
        shutil.rmtree(folder)
        return _view(stored)

    @contextmanager
    def _alone(self, upload_id: str) -> Iterator[None]:
        if upload_id in self._at_work:
            raise ConflictError("another request writes to this upload")
        self._at_work.add(upload_id)
        try:
            yield
        finally:
            self._at_work.discard(upload_id)

    def _path(self, tenant: str, upload_id: str) -> Path:
        return self._folder / tenant / upload_id


def _view(stored: StoredUpload) -> UploadView:
    about: dict[str, Any] = stored.model_dump(exclude={"size"})
    return UploadView(length=stored.size, offset=stored.size, **about)


def _shown(name: str) -> str:
    """A name that somebody gave, as it may be shown."""
    printable = "".join(it if it.isprintable() else "?" for it in name)
    return printable.strip()[:_LONGEST_NAME] or "upload"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


async def _in_time(pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """What comes, until nothing comes for long: a connection may be gone and not know it."""
    while True:
        try:
            yield await asyncio.wait_for(anext(pieces), SILENCE_S)
        except StopAsyncIteration:
            return
        except TimeoutError as error:
            raise TooSlowError("nothing came for too long; go on from Upload-Offset") from error


async def _append(
    path: Path, pieces: AsyncIterator[bytes], most: int, checksum: Checksum | None
) -> None:
    """Write what comes to the end of a file, also where it breaks off."""
    digest = None if checksum is None else hashlib.new(checksum.algorithm, usedforsecurity=False)
    batch, is_good = bytearray(), checksum is None
    with path.open("ab") as file:
        start = file.tell()
        try:
            async for piece in pieces:
                most -= len(piece)
                if most < 0:
                    raise TooLargeError("more bytes came than Upload-Length says")
                batch += piece
                if digest is not None:
                    digest.update(piece)
                if len(batch) >= _WRITE_BYTES:
                    await to_thread.run_sync(file.write, bytes(batch))
                    batch.clear()
            if checksum is not None and digest is not None:
                is_good = digest.digest() == checksum.digest
                if not is_good:
                    raise ChecksumError(
                        "other bytes came than Upload-Checksum says; send them again"
                    )
        finally:
            file.write(batch)
            file.flush()
            if not is_good:
                file.truncate(start)
