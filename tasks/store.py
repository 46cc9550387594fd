"""The store of everything durable: a local folder, S3, GCS or Azure, by URL.

Spells the key of every kind of object, and writes objects whole or not at all. Imports neither
Celery nor Redis.
"""

import contextlib
import hashlib
from collections.abc import Iterable, Iterator
from datetime import datetime
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError
from obstore.store import LocalStore, from_url

from tasks.errors import MissingObjectError, StoreError
from tasks.events import Artifact

PACKS = "cache"
"""The prefix of all packs of cache entries."""

ARCHIVE = "records"
"""The prefix of the archived records of all jobs."""

UPLOADS = "uploads"
"""The prefix of the uploads of all tenants."""

SAVED_DATASETS = "saved_datasets"
"""The prefix of the saved datasets of all tenants; their images are uploads."""


def dataset_key(digest: str) -> str:
    """Return the key of the normalized dataset with this digest."""
    return f"datasets/{digest}.json"


def known_images_key(digest: str) -> str:
    """Return the key of the results of earlier checks of a dataset's images."""
    return f"known_images/{digest}"


def image_key(digest: str) -> str:
    """Return the key of the image with this digest, in the file format it arrived in."""
    return f"images/{digest[:2]}/{digest}"


CAPTIONS = "captions/"
"""The prefix of the captions that models have written."""


def caption_key(settings: str, image: str) -> str:
    """Return the key of the caption that a model has written for an image.

    Args:
        settings: The digest of the model and all else that decides its captions.
        image: The SHA-256 of the image's file.
    """
    return f"{CAPTIONS}{settings}/{image[:2]}/{image}.txt"


def pack_prefix(kind: str) -> str:
    """Return the prefix of the packs of a kind of entries."""
    return f"{PACKS}/{kind}/"


def pack_key(kind: str, pack_id: str) -> str:
    """Return the key of a pack of cache entries."""
    return f"{pack_prefix(kind)}{pack_id[:2]}/{pack_id}.safetensors"


def job_prefix(job_id: str) -> str:
    """Return the prefix of everything that only one job has, but for its published files."""
    return f"jobs/{job_id}/"


def report_key(job_id: str) -> str:
    """Return the key of the report on a job's dataset."""
    return f"jobs/{job_id}/dataset_report.json"


def archived_record_key(job_id: str) -> str:
    """Return the key of the archived record of a job with results."""
    return f"{ARCHIVE}/{job_id}.json"


def cache_index_key(job_id: str) -> str:
    """Return the key of the index of a job's cache entries."""
    return f"jobs/{job_id}/cache.json"


def checkpoint_prefix(job_id: str, step: int, start_id: str) -> str:
    """Return the prefix of a checkpoint; starts never share one."""
    return f"jobs/{job_id}/checkpoints/{step:08d}-{start_id}"


def validation_prefix(job_id: str, step: int, start_id: str) -> str:
    """Return the prefix of a step's validation images; starts never share one."""
    return f"jobs/{job_id}/validation/{step:08d}-{start_id}"


def upload_key(tenant: str, upload_id: str) -> str:
    """Return the key of a tenant's upload; its description has the suffix ``.json``."""
    return f"{UPLOADS}/{tenant}/{upload_id}"


def saved_dataset_key(tenant: str, dataset_id: str) -> str:
    """Return the key of a tenant's saved dataset."""
    return f"{SAVED_DATASETS}/{tenant}/{dataset_id}.json"


def audit_key(day: str, first_entry: str) -> str:
    """Return the key of a part of the audit log, by its day and the id of its first entry."""
    return f"audit/{day}/{first_entry}.jsonl"


MANIFEST = "manifest.json"
"""Name of the file that lists a job's published files; it is written last."""


def output_prefix(job_id: str, folder: str | None) -> str:
    """Return the prefix of a job's published files."""
    return f"{folder or 'outputs'}/{job_id}"


class ObjectInfo(NamedTuple):
    """An object in a listing; its size is in bytes."""

    key: str
    size: int
    modified: datetime


class Store:
    """Objects by key. Every write is whole or absent.

    Args:
        url: ``file:///folder``, ``s3://bucket/prefix``, ``gs://...`` or ``az://...``; the
            credentials come from the environment, under the names that each cloud's tools use.

    Raises:
        StoreError: By every method that the store fails.
        MissingObjectError: By methods that read a missing object.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        parts = urlsplit(url)
        self._folder = Path(unquote(parts.path)) if parts.scheme == "file" else None
        try:
            folder = self._folder
            self._store = from_url(url) if folder is None else LocalStore(folder, mkdir=True)
        except (BaseError, OSError, ValueError) as error:
            # An unavailable file system may come back; a malformed URL stays malformed.
            retryable = isinstance(error, OSError)
            raise StoreError(
                f"cannot open the store: {_first_line(error)}", retryable=retryable
            ) from error

    def put(self, key: str, data: bytes | Path) -> None:
        """Write an object; replace an existing one."""
        with _failing_to(f"write {key}"):
            obstore.put(self._store, key, data)

    def put_if_absent(self, key: str, data: bytes | Path) -> bool:
        """Write an object unless it exists; return whether this call wrote it."""
        try:
            with _failing_to(f"write {key}"):
                obstore.put(self._store, key, data, mode="create")
        except AlreadyExistsError:
            return False
        return True

    def put_artifact(self, key: str, path: Path) -> Artifact:
        """Write a file and return its description; safe to repeat with the same file."""
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        self.put(key, path)
        name = key.rsplit("/", 1)[-1]
        return Artifact(name=name, key=key, sha256=digest, size=path.stat().st_size)

    def get(self, key: str) -> bytes:
        """Return an object's bytes."""
        with _failing_to(f"read {key}", key):
            return bytes(obstore.get(self._store, key).bytes())

    def get_range(self, key: str, start: int, end: int) -> bytes:
        """Return some of an object's bytes, up to its end if that comes before ``end``."""
        with _failing_to(f"read {key}", key):
            return bytes(obstore.get_range(self._store, key, start=start, end=end))

    def download(self, key: str, path: Path) -> None:
        """Write an object to a file in chunks: it may be larger than memory."""
        with _failing_to(f"read {key}"), path.open("wb") as file:
            for chunk in obstore.get(self._store, key).stream():
                file.write(chunk)

    def exists(self, key: str) -> bool:
        """Whether the object exists."""
        try:
            self.size(key)
        except MissingObjectError:
            return False
        return True

    def size(self, key: str) -> int:
        """Return an object's size in bytes."""
        with _failing_to(f"look for {key}", key):
            return int(obstore.head(self._store, key)["size"])

    def copy(self, source: str, target: str) -> None:
        """Copy an object within the store; replace an existing target."""
        with _failing_to(f"copy {source} to {target}"):
            obstore.copy(self._store, source, target)

    def keys(self, prefix: str) -> list[str]:
        """Return the keys below a prefix, sorted."""
        return sorted(self.sizes(prefix))

    def sizes(self, prefix: str) -> dict[str, int]:
        """Return the keys below a prefix, each with the object's size in bytes."""
        with _failing_to(f"list {prefix}"):
            batches = obstore.list(self._store, prefix)
            return {meta["path"]: meta["size"] for batch in batches for meta in batch}

    def iterate(self, prefix: str) -> Iterator[ObjectInfo]:
        """Yield the objects below a prefix, a page of the store's listing in memory at a time."""
        with _failing_to(f"list {prefix}"):
            for batch in obstore.list(self._store, prefix):
                for meta in batch:
                    yield ObjectInfo(meta["path"], meta["size"], meta["last_modified"])

    def delete(self, keys: Iterable[str]) -> None:
        """Remove objects, all in one request where the store can; missing ones are no error."""
        listed = list(dict.fromkeys(keys))
        if not listed:
            return
        with _failing_to(f"remove {', '.join(listed[:3])}"):
            try:
                obstore.delete(self._store, listed)
            except FileNotFoundError:
                # A local folder stops at a missing file, and has removed some of the others.
                for key in listed:
                    with contextlib.suppress(FileNotFoundError):
                        obstore.delete(self._store, key)

    def local_path(self, key: str) -> Path | None:
        """Return the object's file, if the store is a local folder."""
        return None if self._folder is None else self._folder / key

    def locate(self, key: str) -> str:
        """Return where a person finds the object: a path, or a URL."""
        path = self.local_path(key)
        return str(path) if path is not None else f"{self.url.rstrip('/')}/{key}"


@contextlib.contextmanager
def _failing_to(action: str, read_key: str | None = None) -> Iterator[None]:
    """Raise a store's errors as ``StoreError``.

    Args:
        action: What the store cannot do, for the message.
        read_key: The object that is read, if a missing one is a ``MissingObjectError``.

    Raises:
        AlreadyExistsError: The object exists.
        MissingObjectError: There is no object of ``read_key``.
        StoreError: The store failed.
    """
    try:
        yield
    except AlreadyExistsError:
        raise
    except (BaseError, OSError) as error:
        if read_key is not None and isinstance(error, FileNotFoundError):
            raise MissingObjectError(read_key) from error
        raise StoreError(f"cannot {action}: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    """Return an error's message; obstore appends a dump of its structures."""
    return str(error).partition("\n")[0]
