"""Uploads to the console: archives in the store, each for the jobs of one tenant only.

A job names one as ``upload:ID``. The tenant that it is looked for under is the job's own, so that
an id of another tenant's names nothing.
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
    """There is no such upload; says so."""


class StoredUpload(StrictModel):
    """What is known of an upload that is whole; kept beside it."""

    id: str
    tenant: str
    name: str
    """What its sender called it."""
    size: int
    sha256: str
    created: datetime


def upload_id_in(place: str) -> str | None:
    """The id in an ``upload:`` name; None where it is none."""
    upload_id = place.removeprefix(_SCHEME)
    return upload_id if place != upload_id and is_upload_id(upload_id) else None


def is_upload(place: str) -> bool:
    """Whether a dataset's place is an upload, right or wrong."""
    return place.startswith(_SCHEME)


def is_upload_id(text: str) -> bool:
    """Whether a text could be an upload's id."""
    return _ID.fullmatch(text) is not None


@dataclass(frozen=True)
class StoredUploads:
    """The whole uploads of one tenant.

    Attributes:
        store: Where they are.
        tenant: Whose they are.
    """

    store: Store
    tenant: str

    def path_of(self, place: str, folder: Path) -> Path:
        """The file of an upload.

        Args:
            place: ``upload:ID``.
            folder: Where it is put, unless the store is a local folder.

        Raises:
            NoUploadError: This tenant has none of this id.
            StoreError: The store cannot be read.
        """
        upload_id = upload_id_in(place)
        if upload_id is None:
            raise NoUploadError("is no upload; one is named as upload: and the id it was given")
        key = upload_key(self.tenant, upload_id)
        if not self.store.exists(key):
            raise NoUploadError(f"tenant {self.tenant} has no such upload, or it is not whole yet")
        path = self.store.local_path(key)
        if path is None:
            folder.mkdir(parents=True, exist_ok=True)
            path = folder / upload_id
            self.store.download(key, path)
        return path

    def get(self, upload_id: str) -> StoredUpload | None:
        """What is known of one; None where there is none."""
        try:
            about = self.store.get(f"{upload_key(self.tenant, upload_id)}.json")
        except MissingObjectError:
            return None
        return StoredUpload.model_validate_json(about)

    def all(self) -> list[StoredUpload]:
        """All of them, the newest first."""
        keys = self.store.keys(f"{UPLOADS}/{self.tenant}")
        names = [key.rpartition("/")[2] for key in keys if key.endswith(".json")]
        found = [self.get(name.removesuffix(".json")) for name in names]
        return sorted(filter(None, found), key=lambda it: it.created, reverse=True)

    def put(self, upload_id: str, name: str, path: Path, sha256: str) -> StoredUpload:
        """Keep a file; what is known of it is written last."""
        key, now = upload_key(self.tenant, upload_id), datetime.now(UTC)
        size = path.stat().st_size
        self.store.put(key, path)
        about = StoredUpload(
            id=upload_id, tenant=self.tenant, name=name, size=size, sha256=sha256, created=now
        )
        self.store.put(f"{key}.json", json.dumps(about.model_dump(mode="json")).encode())
        return about

    def delete(self, upload_id: str) -> None:
        """Remove one; jobs whose images are read already do not need it."""
        key = upload_key(self.tenant, upload_id)
        self.store.delete([f"{key}.json", key])


def tenants_with_uploads(store: Store) -> list[str]:
    """The tenants that have any.

    Raises:
        StoreError: The store cannot be read.
    """
    return sorted({key.split("/")[1] for key in store.keys(UPLOADS) if key.count("/") == 2})
