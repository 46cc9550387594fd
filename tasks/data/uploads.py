"""Uploads to the console: archives in the store, each for the jobs of one tenant only.

A job names an upload as ``upload:ID``. It is looked up under the job's own tenant, so that an id of
another tenant finds nothing.
"""

import json
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from tasks.errors import MissingObjectError
from tasks.store import UPLOADS, Store, upload_key
from tasks.strict_model import StrictModel

_SCHEME = "upload:"
_ID = re.compile(r"[0-9a-f]{32}")


class NoUploadError(ValueError):
    """There is no such upload; the message says why."""


class StoredUpload(StrictModel):
    """Metadata of a complete upload, stored beside it."""

    id: str
    tenant: str
    name: str
    """The file's name at its sender."""
    size: int
    sha256: str
    created: datetime


def upload_id_in(source: str) -> str | None:
    """Return the id of an ``upload:ID`` source; None if it is not one."""
    upload_id = source.removeprefix(_SCHEME)
    return upload_id if source != upload_id and is_upload_id(upload_id) else None


def is_upload(source: str) -> bool:
    """Return whether a dataset's source names an upload, valid or not."""
    return source.startswith(_SCHEME)


def is_upload_id(text: str) -> bool:
    """Return whether a text has the form of an upload's id."""
    return _ID.fullmatch(text) is not None


@dataclass(frozen=True)
class StoredUploads:
    """The complete uploads of one tenant.

    Attributes:
        store: The store that has them.
        tenant: Their owner.
    """

    store: Store
    tenant: str

    def path_of(self, source: str, folder: Path) -> Path:
        """Return the local file of an upload.

        Args:
            source: ``upload:ID``.
            folder: The folder that it is downloaded to, unless the store is local.

        Raises:
            NoUploadError: The tenant has no complete upload of this id.
            StoreError: The store cannot be read.
        """
        upload_id = upload_id_in(source)
        if upload_id is None:
            raise NoUploadError("is not an upload; write upload: and the upload's id")
        key = upload_key(self.tenant, upload_id)
        if not self.store.exists(key):
            raise NoUploadError(f"tenant {self.tenant} has no such upload, or it is incomplete")
        path = self.store.local_path(key)
        if path is None:
            folder.mkdir(parents=True, exist_ok=True)
            path = folder / upload_id
            self.store.download(key, path)
        return path

    def get(self, upload_id: str) -> StoredUpload | None:
        """Return an upload's metadata; None if there is no such upload."""
        try:
            document = self.store.get(f"{upload_key(self.tenant, upload_id)}.json")
        except MissingObjectError:
            return None
        return StoredUpload.model_validate_json(document)

    def all(self) -> list[StoredUpload]:
        """Return the metadata of all uploads, newest first."""
        keys = self.store.keys(f"{UPLOADS}/{self.tenant}")
        names = [key.rpartition("/")[2] for key in keys if key.endswith(".json")]
        uploads = [self.get(name.removesuffix(".json")) for name in names]
        return sorted(filter(None, uploads), key=lambda it: it.created, reverse=True)

    def put(self, upload_id: str, name: str, path: Path, sha256: str) -> StoredUpload:
        """Store a file and, last, its metadata."""
        key, now = upload_key(self.tenant, upload_id), datetime.now(UTC)
        size = path.stat().st_size
        self.store.put(key, path)
        upload = StoredUpload(
            id=upload_id, tenant=self.tenant, name=name, size=size, sha256=sha256, created=now
        )
        self.store.put(f"{key}.json", json.dumps(upload.model_dump(mode="json")).encode())
        return upload

    def delete(self, upload_id: str) -> None:
        """Remove an upload. Jobs that are prepared no longer need it."""
        key = upload_key(self.tenant, upload_id)
        self.store.delete([f"{key}.json", key])


def tenants_with_uploads(store: Store) -> list[str]:
    """Return the tenants that have uploads, sorted.

    Raises:
        StoreError: The store cannot be read.
    """
    return sorted({key.split("/")[1] for key in store.keys(UPLOADS) if key.count("/") == 2})
