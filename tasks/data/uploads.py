"""Uploads to the console: archives in the store, each for the jobs of one tenant only.

A job names an upload as ``upload:ID``. It is looked up under the job's own tenant, so that an id of
another tenant finds nothing.
"""

import json
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath

from pydantic import TypeAdapter, ValidationError

from tasks.errors import MissingObjectError, UsageError
from tasks.escaping import quoted
from tasks.jobs.job import SafeName
from tasks.store import UPLOADS, Store, upload_key
from tasks.strict_model import StrictModel

_SCHEME = "upload:"
_ID = re.compile(r"[0-9a-f]{32}")
_TENANT: TypeAdapter[str] = TypeAdapter(SafeName)


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

    Raises:
        UsageError: The tenant's name is none; it becomes a part of paths.
    """

    store: Store
    tenant: str

    def __post_init__(self) -> None:
        """Refuse a name that would lead to another tenant's uploads, or out of the store."""
        try:
            _TENANT.validate_python(self.tenant)
        except ValidationError as error:
            raise UsageError(f"{quoted(self.tenant)} is not the name of a tenant") from error

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
            document = self.store.get(f"{self._key(upload_id)}.json")
        except MissingObjectError:
            return None
        return StoredUpload.model_validate_json(document)

    def ids(self) -> list[str]:
        """Return the ids of all uploads."""
        keys = self.store.keys(f"{UPLOADS}/{self.tenant}")
        names = [PurePosixPath(key).stem for key in keys if key.endswith(".json")]
        return [name for name in names if is_upload_id(name)]

    def put(self, upload_id: str, name: str, path: Path, sha256: str) -> StoredUpload:
        """Store a file and, last, its metadata."""
        key, now = self._key(upload_id), datetime.now(UTC)
        size = path.stat().st_size
        self.store.put(key, path)
        upload = StoredUpload(
            id=upload_id, tenant=self.tenant, name=name, size=size, sha256=sha256, created=now
        )
        self.store.put(f"{key}.json", json.dumps(upload.model_dump(mode="json")).encode())
        return upload

    def delete(self, upload_id: str) -> None:
        """Remove an upload. Jobs that are prepared no longer need it."""
        key = self._key(upload_id)
        self.store.delete([f"{key}.json", key])

    def _key(self, upload_id: str) -> str:
        if not is_upload_id(upload_id):
            raise UsageError(f"{quoted(upload_id)} is not the id of an upload")
        return upload_key(self.tenant, upload_id)


def tenants_with_uploads(store: Store) -> list[str]:
    """Return the tenants that have uploads, sorted.

    Raises:
        StoreError: The store cannot be read.
    """
    return sorted({key.split("/")[1] for key in store.keys(UPLOADS) if key.count("/") == 2})
