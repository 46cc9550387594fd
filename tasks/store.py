"""The store of everything that lasts: a local folder, S3, GCS or Azure, by URL.

Knows where each kind of thing lies (all keys are spelled here) and how to write it so that nobody
ever reads half of it. Knows no Celery and no Redis.
"""

import hashlib
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import unquote, urlsplit

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError
from obstore.store import LocalStore, from_url

from tasks.errors import MissingObjectError, StoreError
from tasks.events import Artifact

# Below it lie all packs of cache entries, those of text and those of latents.
PACKS = "cache"
# Below it lie the uploads of each tenant.
UPLOADS = "uploads"


def dataset_key(digest: str) -> str:
    """The normalised dataset with this digest."""
    return f"datasets/{digest}.json"


def image_key(digest: str) -> str:
    """The image with this digest, in the file format it came in."""
    return f"images/{digest[:2]}/{digest}"


def pack_prefix(kind: str) -> str:
    """Below it lie the packs of a kind."""
    return f"{PACKS}/{kind}/"


def pack_key(kind: str, pack_id: str) -> str:
    """A pack of cache entries."""
    return f"{pack_prefix(kind)}{pack_id[:2]}/{pack_id}.safetensors"


def report_key(job_id: str) -> str:
    """What was found in a job's dataset."""
    return f"jobs/{job_id}/dataset_report.json"


def cache_index_key(job_id: str) -> str:
    """Which cache entries belong to which samples of a job."""
    return f"jobs/{job_id}/cache.json"


def checkpoint_prefix(job_id: str, step: int, attempt: int) -> str:
    """The folder of one checkpoint; attempts never share one."""
    return f"jobs/{job_id}/checkpoints/{step:08d}-{attempt}"


def validation_prefix(job_id: str, step: int, attempt: int) -> str:
    """The folder of one step's validation images; attempts never share one."""
    return f"jobs/{job_id}/validation/{step:08d}-{attempt}"


def upload_key(tenant: str, upload_id: str) -> str:
    """A tenant's upload; ``.json`` after it is what is known of it."""
    return f"{UPLOADS}/{tenant}/{upload_id}"


def output_prefix(job_id: str, folder: str | None) -> str:
    """The folder a job's results are published in."""
    return f"{folder or 'outputs'}/{job_id}"


class Store:
    """Objects by key. Every write is whole or absent.

    Args:
        url: ``file:///folder``, ``s3://bucket/prefix``, ``gs://...`` or ``az://...``; the
            credentials come from the environment, as each cloud's own tools read them.

    Raises:
        StoreError: From every method, when the store cannot do it.
        MissingObjectError: From those that read, where there is no such object.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        parts = urlsplit(url)
        self._folder = Path(unquote(parts.path)) if parts.scheme == "file" else None
        try:
            folder = self._folder
            self._store = from_url(url) if folder is None else LocalStore(folder, mkdir=True)
        except (BaseError, OSError, ValueError) as error:
            # A file system that is away may come back; a wrong address stays wrong.
            retryable = isinstance(error, OSError)
            raise StoreError(
                f"cannot open the store: {_first_line(error)}", retryable=retryable
            ) from error

    def put(self, key: str, data: bytes | Path) -> None:
        """Write an object, over an older one of the same key."""
        try:
            obstore.put(self._store, key, data)
        except (BaseError, OSError) as error:
            raise StoreError(f"cannot write {key}: {_first_line(error)}") from error

    def put_if_absent(self, key: str, data: bytes | Path) -> bool:
        """Write an object unless there is one; True where this call wrote it."""
        try:
            obstore.put(self._store, key, data, mode="create")
        except AlreadyExistsError:
            return False
        except (BaseError, OSError) as error:
            raise StoreError(f"cannot write {key}: {_first_line(error)}") from error
        return True

    def put_artifact(self, key: str, path: Path) -> Artifact:
        """Write a file and say what it is; safe to repeat with the same file."""
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        self.put(key, path)
        name = key.rsplit("/", 1)[-1]
        return Artifact(name=name, key=key, sha256=digest, size=path.stat().st_size)

    def get(self, key: str) -> bytes:
        """An object's bytes."""
        try:
            return bytes(obstore.get(self._store, key).bytes())
        except FileNotFoundError as error:
            raise MissingObjectError(key) from error
        except (BaseError, OSError) as error:
            raise StoreError(f"cannot read {key}: {_first_line(error)}") from error

    def get_range(self, key: str, start: int, end: int) -> bytes:
        """Some of an object's bytes, up to its end where that comes before ``end``."""
        try:
            return bytes(obstore.get_range(self._store, key, start=start, end=end))
        except FileNotFoundError as error:
            raise MissingObjectError(key) from error
        except (BaseError, OSError) as error:
            raise StoreError(f"cannot read {key}: {_first_line(error)}") from error

    def download(self, key: str, path: Path) -> None:
        """Write an object to a file, piece by piece: it may be larger than memory."""
        try:
            with path.open("wb") as file:
                for piece in obstore.get(self._store, key).stream():
                    file.write(piece)
        except (BaseError, OSError) as error:
            raise StoreError(f"cannot read {key}: {_first_line(error)}") from error

    def exists(self, key: str) -> bool:
        """Whether there is an object of this key."""
        try:
            obstore.head(self._store, key)
        except FileNotFoundError:
            return False
        except (BaseError, OSError) as error:
            raise StoreError(f"cannot look for {key}: {_first_line(error)}") from error
        return True

    def size(self, key: str) -> int:
        """An object's size in bytes."""
        try:
            return int(obstore.head(self._store, key)["size"])
        except FileNotFoundError as error:
            raise MissingObjectError(key) from error
        except (BaseError, OSError) as error:
            raise StoreError(f"cannot look for {key}: {_first_line(error)}") from error

    def copy(self, source: str, target: str) -> None:
        """Copy an object inside the store, over an older one."""
        try:
            obstore.copy(self._store, source, target)
        except (BaseError, OSError) as error:
            raise StoreError(f"cannot copy {source} to {target}: {_first_line(error)}") from error

    def keys(self, prefix: str) -> list[str]:
        """The keys below a prefix, sorted."""
        return sorted(self.sizes(prefix))

    def sizes(self, prefix: str) -> dict[str, int]:
        """The objects below a prefix, each with its size in bytes."""
        try:
            found = obstore.list(self._store, prefix)
            return {meta["path"]: meta["size"] for batch in found for meta in batch}
        except (BaseError, OSError) as error:
            raise StoreError(f"cannot list {prefix}: {_first_line(error)}") from error

    def delete(self, keys: Iterable[str]) -> None:
        """Remove objects; those that are gone already are no error."""
        for key in keys:
            try:
                obstore.delete(self._store, key)
            except FileNotFoundError:
                continue
            except (BaseError, OSError) as error:
                raise StoreError(f"cannot remove {key}: {_first_line(error)}") from error

    def local_path(self, key: str) -> Path | None:
        """The object's file, where the store is a local folder."""
        return None if self._folder is None else self._folder / key

    def locate(self, key: str) -> str:
        """Where a person finds the object: a path, or a URL."""
        path = self.local_path(key)
        return str(path) if path is not None else f"{self.url.rstrip('/')}/{key}"


def _first_line(error: Exception) -> str:
    """What of an error is for people; obstore adds a dump of its own structures."""
    return str(error).partition("\n")[0]
