"""The download cache of this machine: dataset files from HTTPS, S3, GCS and Azure.

Each fetch asks the server for the file, which is transferred again only if it changed. Interrupted
downloads resume.
"""

import fcntl
import hashlib
import json
import os
import shutil
import weakref
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import chain
from pathlib import Path
from typing import IO, Any

from tasks.data.download.background import CheckStop, in_background, wait
from tasks.data.download.https import HttpsClient
from tasks.data.download.object_store import check_object_url, list_objects, request_object
from tasks.data.download.protocol import (
    DownloadError,
    DownloadResponse,
    FileMeta,
    InterruptedDownloadError,
    StalePartError,
)
from tasks.data.read_policy import OBJECT_SCHEMES, ReadPolicy
from tasks.urls import redacted, scheme_of

OnProgress = Callable[[int, int | None], None]

PAUSES_S = (0.5, 1.0, 2.0)
"""The pause before each retry of an interrupted download."""
_PIECE_BYTES = 2**20
_LOCK_POLL_S = 0.1


class Downloads:
    """Downloads files and keeps them in a folder.

    Object stores are read with the worker's credentials, below the operator's roots only.

    Several threads and processes may use one folder; one that needs a file waits while another one
    downloads it. A later ``fetch`` of another file may remove files from the folder, least recently
    used first; a file that is open stays readable.

    Args:
        folder: The folder of the files.
        policy: The operator's rules.
        check_stop: Called several times a second during downloads; ends them by raising an error.
    """

    def __init__(
        self, folder: Path, policy: ReadPolicy, check_stop: CheckStop = lambda: None
    ) -> None:
        self._folder = folder
        self._policy = policy
        self._check_stop = check_stop
        self._https = HttpsClient(policy.hosts)
        weakref.finalize(self, self._https.close)
        # The bytes that may still be added before the folder is measured again.
        self._bytes_until_measured = 0

    def fetch(
        self,
        url: str,
        *,
        sha256: str | None = None,
        on_progress: OnProgress | None = None,
    ) -> Path:
        """Return the file of a URL, downloaded unless the stored one is still the same.

        Args:
            url: ``https://``, ``s3://``, ``gs://`` or ``az://``; ``http://`` for allowed hosts.
                An object's name is taken literally: ``%20`` in it is no space.
            sha256: The digest that the file must have. A stored file that has it is not requested.
            on_progress: Receives the bytes that are stored and the file's size, None if unknown.

        Raises:
            DownloadError: The file cannot be downloaded or stored.
            DeniedError: The URL is an object's, outside the operator's roots.
        """
        self._check(url)
        report = on_progress or (lambda so_far, size: None)
        expected = None if sha256 is None else sha256.lower()
        try:
            with self._locked_entry(url) as entry:
                stored = entry.load()
                if expected is None or stored is None or stored.sha256 != expected:
                    stored = self._refresh(url, entry, report)
                    if expected not in (None, stored.sha256):
                        entry.clear()
                        raise DownloadError(
                            f"{redacted(url)} has the SHA-256 {stored.sha256}, not {expected}"
                        )
                size = entry.data.stat().st_size
                report(size, size)
                entry.mark_used()
                self._evict(entry, size)
                return entry.data
        except OSError as error:
            reason = error.strerror or type(error).__name__
            raise DownloadError(
                f"{redacted(url)} cannot be stored in {self._folder}: {reason}"
            ) from error

    def list_objects(self, url: str) -> list[str]:
        """Return the names of the objects below a prefix, relative to it, sorted.

        Args:
            url: ``s3://bucket/prefix``, ``gs://...`` or ``az://...``.

        Raises:
            DownloadError: The objects cannot be listed.
            DeniedError: The prefix is outside the operator's roots.
        """
        if scheme_of(url) not in OBJECT_SCHEMES:
            raise DownloadError(f"{redacted(url)} cannot be listed; use s3://, gs:// or az://")
        url = url.rstrip("/")
        self._check(url)
        with closing(in_background(list_objects(url), self._check_stop)) as batches:
            return sorted(chain.from_iterable(batches))

    def _check(self, url: str) -> None:
        if scheme_of(url) in OBJECT_SCHEMES:
            # Before the operator's rules, whose message has the whole URL.
            check_object_url(url)
            self._policy.check_url(url)
        else:
            self._https.check(url)

    @contextmanager
    def _locked_entry(self, url: str) -> Iterator["_Entry"]:
        """Yield the entry of a URL, locked against other processes and threads."""
        self._folder.mkdir(parents=True, exist_ok=True)
        folder = self._folder / hashlib.sha256(url.encode("utf-8", "surrogatepass")).hexdigest()
        with _lock_path(folder).open("w") as lock:
            while not _is_locked(lock):
                wait(_LOCK_POLL_S, self._check_stop)
            folder.mkdir(exist_ok=True)
            yield _Entry(folder)

    def _refresh(self, url: str, entry: "_Entry", report: OnProgress) -> FileMeta:
        """Bring an entry up to date with its URL, and retry if the download is interrupted."""
        for pause_s in (*PAUSES_S, None):
            try:
                return self._download(url, entry, report)
            except InterruptedDownloadError as error:
                if isinstance(error, StalePartError):
                    entry.clear()
                if pause_s is None:
                    attempts = len(PAUSES_S) + 1
                    raise DownloadError(
                        f"{redacted(url)} was interrupted {attempts} times: {error}", retryable=True
                    ) from error
                wait(pause_s, self._check_stop)
        raise AssertionError("the last pause is None")

    def _download(self, url: str, entry: "_Entry", report: OnProgress) -> FileMeta:
        stored = entry.load()
        is_object = scheme_of(url) in OBJECT_SCHEMES
        request = request_object if is_object else self._https.request_file

        def transfer() -> Generator[Any, None, None]:
            with request(url, stored, entry.part_size(stored)) as response:
                yield response
                # This thread goes ahead of the check, which refuses a larger file.
                if response is not None and (response.meta.size or 0) <= self._policy.max_bytes:
                    yield from response.pieces

        with closing(in_background(transfer(), self._check_stop)) as items:
            response: DownloadResponse | None = next(items)
            if response is None:
                if stored is None or stored.sha256 is None:
                    raise DownloadError(
                        f"the server reports {redacted(url)} as unchanged, but it is not stored"
                    )
                return stored
            self._check_size(url, response.meta.size or 0, entry)
            return self._write(url, replace(response, pieces=items), entry, report)

    def _write(
        self, url: str, response: DownloadResponse, entry: "_Entry", report: OnProgress
    ) -> FileMeta:
        size = response.meta.size
        if response.offset == 0:
            entry.begin(response.meta)
        so_far = last_reported = response.offset
        report(so_far, size)
        with entry.part.open("ab", buffering=_PIECE_BYTES) as file:
            for piece in response.pieces:
                so_far += len(piece)
                self._check_size(url, so_far, entry)
                file.write(piece)
                if so_far - last_reported >= _PIECE_BYTES:
                    report(so_far, size)
                    last_reported = so_far
        if size is not None and so_far < size:
            raise InterruptedDownloadError(f"only {so_far:,} of {size:,} bytes arrived")
        if size is not None and so_far > size:
            raise StalePartError(f"{so_far:,} bytes arrived, not {size:,}")
        return entry.finish(replace(response.meta, size=so_far))

    def _check_size(self, url: str, size: int, entry: "_Entry") -> None:
        if size > self._policy.max_bytes:
            entry.clear()
            raise DownloadError(
                f"{redacted(url)} is larger than {self._policy.max_bytes:,} bytes, the maximum"
            )

    def _evict(self, newest: "_Entry", size: int) -> None:
        """Remove the least recently used entries if the folder is too large."""
        self._bytes_until_measured -= size
        if self._bytes_until_measured >= 0:
            return
        max_bytes = 2 * self._policy.max_bytes
        entries = [_Entry(path) for path in self._folder.iterdir() if path.is_dir()]
        total = sum(entry.size() for entry in entries)
        for entry in sorted(entries, key=_Entry.used_at):
            if total <= max_bytes:
                break
            if entry.folder != newest.folder:
                total -= entry.remove()
        # Measuring a folder of many small files is slow, so it waits until an eighth of the free
        # space is used: other processes fill the folder, too.
        self._bytes_until_measured = max(0, max_bytes - total) // 8


@dataclass(frozen=True)
class _Entry:
    """The folder of one file: ``data``, or ``part`` during the download, and its metadata."""

    folder: Path

    @property
    def data(self) -> Path:
        """The whole file."""
        return self.folder / "data"

    @property
    def part(self) -> Path:
        """The bytes that arrived so far."""
        return self.folder / "part"

    @property
    def _meta(self) -> Path:
        return self.folder / "meta.json"

    def load(self) -> FileMeta | None:
        """Return the metadata of ``data`` if it has a digest, else of ``part``; None if absent."""
        try:
            meta = FileMeta(**json.loads(self._meta.read_text("utf-8")))
        except (FileNotFoundError, ValueError, TypeError):
            return None
        if meta.sha256 is not None and _size(self.data) != meta.size:
            return None
        return meta

    def part_size(self, meta: FileMeta | None) -> int:
        """Return the size in bytes of a part that may be resumed."""
        if meta is None or meta.sha256 is not None or meta.strong_etag is None:
            return 0
        return _size(self.part) or 0

    def begin(self, meta: FileMeta) -> None:
        """Replace the entry by a new, empty version."""
        self.clear()
        self._save(meta)

    def finish(self, meta: FileMeta) -> FileMeta:
        """Make the part the whole file, and return its metadata."""
        with self.part.open("rb") as file:
            os.fsync(file.fileno())
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        self.part.replace(self.data)
        meta = replace(meta, sha256=digest)
        self._save(meta)
        return meta

    def clear(self) -> None:
        """Remove all files of the entry."""
        for path in (self._meta, self.part, self.data):
            path.unlink(missing_ok=True)

    def mark_used(self) -> None:
        """Make the entry the most recently used."""
        os.utime(self.folder)

    def used_at(self) -> float:
        """Return the time of the last use, in seconds since the epoch."""
        try:
            return self.folder.stat().st_mtime
        except FileNotFoundError:
            return 0.0

    def size(self) -> int:
        """Return the entry's size in bytes."""
        return (_size(self.data) or 0) + (_size(self.part) or 0)

    def remove(self) -> int:
        """Remove the entry unless it is locked, and return the freed bytes."""
        with _lock_path(self.folder).open("w") as lock:
            if not _is_locked(lock):
                return 0
            size = self.size()
            shutil.rmtree(self.folder, ignore_errors=True)
            return size

    def _save(self, meta: FileMeta) -> None:
        new = self._meta.with_suffix(".new")
        new.write_text(json.dumps(asdict(meta)), "utf-8")
        new.replace(self._meta)


def _is_locked(file: IO[str]) -> bool:
    """Try to lock a file; return whether it is locked now."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _lock_path(folder: Path) -> Path:
    # Beside the entry, and never removed: two processes could hold a lock that was removed.
    return folder.with_suffix(".lock")


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return None
