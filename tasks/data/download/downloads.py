"""Downloads of datasets, by HTTPS and from S3, GCS and Azure, kept on this machine.

A file is asked for again each time, but comes again only when it changed; one that was cut off is
gone on with.
"""

import fcntl
import hashlib
import json
import os
import shutil
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from tasks.data.download.https import Web
from tasks.data.download.object_store import ask_cloud, check_cloud_url, list_names
from tasks.data.download.protocol import (
    DownloadError,
    DownloadResponse,
    FileMeta,
    InterruptedDownloadError,
    OtherPartError,
)
from tasks.data.read_policy import CLOUD_SCHEMES, ReadPolicy
from tasks.urls import scheme_of, shown

OnProgress = Callable[[int, int | None], None]

# Seconds before each time that a broken download is gone on with.
PAUSES = (0.5, 1.0, 2.0)
_PIECE = 2**20


class Downloads:
    """The downloads that this machine keeps.

    Clouds are read with the worker's credentials, below the operator's roots only.

    Several threads and processes may use one folder; one that wants a file that another is
    downloading waits for it. Files that are in use stay readable while they are open, but may be
    removed from the folder by a later ``fetch`` of another file, those not used longest first.

    Args:
        folder: Where they are kept.
        access: The operator's rules.
    """

    def __init__(self, folder: Path, access: ReadPolicy) -> None:
        self._folder = folder
        self._access = access
        self._web = Web(access.hosts)
        weakref.finalize(self, self._web.close)
        # How many bytes may come before the folder is looked through again.
        self._bytes_to_look = 0

    def fetch(
        self,
        url: str,
        *,
        sha256: str | None = None,
        on_progress: OnProgress | None = None,
    ) -> Path:
        """The file of a URL, downloaded unless the one that is kept is still the same.

        Args:
            url: ``https://``, ``s3://``, ``gs://`` or ``az://``; ``http://`` for allowed hosts.
                An object's name is taken as it is: ``%20`` in it is no space.
            sha256: The digest that it must have; a kept file that has it is not asked for again.
            on_progress: Told the bytes that are here and, where known, those that it has.

        Raises:
            DownloadError: It cannot be had.
            DeniedError: It is in a cloud, outside the operator's roots.
        """
        self._check(url)
        told = on_progress or (lambda so_far, total: None)
        wanted = None if sha256 is None else sha256.lower()
        try:
            with self._entry(url) as entry:
                kept = entry.load()
                if wanted is None or kept is None or kept.sha256 != wanted:
                    kept = self._renew(url, entry, told)
                    if wanted not in (None, kept.sha256):
                        entry.clear()
                        raise DownloadError(
                            f"{shown(url)} has the SHA-256 {kept.sha256}, not {wanted}"
                        )
                size = entry.data.stat().st_size
                told(size, size)
                entry.mark_used()
                self._make_room(entry, size)
                return entry.data
        except OSError as error:
            problem = error.strerror or type(error).__name__
            raise DownloadError(
                f"{shown(url)} cannot be kept in {self._folder}: {problem}"
            ) from error

    def list_cloud(self, url: str) -> list[str]:
        """The names of the objects below a prefix, relative to it, sorted.

        Args:
            url: ``s3://bucket/prefix``, ``gs://...`` or ``az://...``.

        Raises:
            DownloadError: They cannot be listed.
            DeniedError: The prefix is outside the operator's roots.
        """
        if scheme_of(url) not in CLOUD_SCHEMES:
            raise DownloadError(f"{shown(url)} cannot be listed; s3://, gs:// and az:// can")
        url = url.rstrip("/")
        self._check(url)
        return list_names(url)

    def _check(self, url: str) -> None:
        if scheme_of(url) in CLOUD_SCHEMES:
            # Before the operator's rules, whose message shows the whole URL.
            check_cloud_url(url)
            self._access.check_cloud(url)
        else:
            self._web.check(url)

    @contextmanager
    def _entry(self, url: str) -> Iterator["_Entry"]:
        """The place of a URL's file, held against other processes and threads."""
        self._folder.mkdir(parents=True, exist_ok=True)
        folder = self._folder / hashlib.sha256(url.encode("utf-8", "surrogatepass")).hexdigest()
        with _lock_path(folder).open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            folder.mkdir(exist_ok=True)
            yield _Entry(folder)

    def _renew(self, url: str, entry: "_Entry", told: OnProgress) -> FileMeta:
        """Make the entry what the URL has now."""
        for pause in (*PAUSES, None):
            try:
                return self._try_to_renew(url, entry, told)
            except InterruptedDownloadError as error:
                if isinstance(error, OtherPartError):
                    entry.clear()
                if pause is None:
                    raise DownloadError(
                        f"{shown(url)} broke off {len(PAUSES) + 1} times: {error}", retryable=True
                    ) from error
                time.sleep(pause)
        raise AssertionError("the last pause is None")

    def _try_to_renew(self, url: str, entry: "_Entry", told: OnProgress) -> FileMeta:
        kept = entry.load()
        ask = ask_cloud if scheme_of(url) in CLOUD_SCHEMES else self._web.ask
        with ask(url, kept, entry.part_size(kept)) as answer:
            if answer is None:
                if kept is None or kept.sha256 is None:
                    raise DownloadError(f"{shown(url)} is said to be unchanged, but never came")
                return kept
            self._check_size(url, answer.meta.size or 0, entry)
            return self._write(url, answer, entry, told)

    def _write(
        self, url: str, answer: DownloadResponse, entry: "_Entry", told: OnProgress
    ) -> FileMeta:
        size = answer.meta.size
        if answer.offset == 0:
            entry.begin(answer.meta)
        so_far = last_told = answer.offset
        told(so_far, size)
        with entry.part.open("ab", buffering=_PIECE) as file:
            for piece in answer.pieces:
                so_far += len(piece)
                self._check_size(url, so_far, entry)
                file.write(piece)
                if so_far - last_told >= _PIECE:
                    told(so_far, size)
                    last_told = so_far
        if size is not None and so_far < size:
            raise InterruptedDownloadError(f"{so_far:,} of {size:,} bytes came")
        if size is not None and so_far > size:
            raise OtherPartError(f"{so_far:,} bytes came, not {size:,}")
        return entry.finish(replace(answer.meta, size=so_far))

    def _check_size(self, url: str, size: int, entry: "_Entry") -> None:
        if size > self._access.most_bytes:
            entry.clear()
            most = self._access.most_bytes
            raise DownloadError(f"{shown(url)} is larger than {most:,} bytes, the most")

    def _make_room(self, newest: "_Entry", size: int) -> None:
        """Remove what was not used longest, if the folder holds too much."""
        self._bytes_to_look -= size
        if self._bytes_to_look >= 0:
            return
        most = 2 * self._access.most_bytes
        entries = [_Entry(path) for path in self._folder.iterdir() if path.is_dir()]
        held = sum(entry.size() for entry in entries)
        for entry in sorted(entries, key=_Entry.used):
            if held <= most:
                break
            if entry.folder != newest.folder:
                held -= entry.remove()
        # Looking through many small files for each is slow. An eighth of the room: other
        # processes fill the folder too.
        self._bytes_to_look = max(0, most - held) // 8


@dataclass(frozen=True)
class _Entry:
    """One file's place: ``data``, or ``part`` while it comes, and what is known of it."""

    folder: Path

    @property
    def data(self) -> Path:
        """The whole file."""
        return self.folder / "data"

    @property
    def part(self) -> Path:
        """What came of it so far."""
        return self.folder / "part"

    @property
    def _meta(self) -> Path:
        return self.folder / "meta.json"

    def load(self) -> FileMeta | None:
        """What is known of the file: of ``data`` if it has a digest, else of ``part``."""
        try:
            meta = FileMeta(**json.loads(self._meta.read_text("utf-8")))
        except (FileNotFoundError, ValueError, TypeError):
            return None
        if meta.sha256 is not None and _size(self.data) != meta.size:
            return None
        return meta

    def part_size(self, meta: FileMeta | None) -> int:
        """How much came that may be gone on with."""
        if meta is None or meta.sha256 is not None or meta.strong_etag is None:
            return 0
        return _size(self.part) or 0

    def begin(self, meta: FileMeta) -> None:
        """Make place for a new version."""
        self.clear()
        self._save(meta)

    def finish(self, meta: FileMeta) -> FileMeta:
        """Make the part the file."""
        with self.part.open("rb") as file:
            os.fsync(file.fileno())
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        self.part.replace(self.data)
        meta = replace(meta, sha256=digest)
        self._save(meta)
        return meta

    def clear(self) -> None:
        """Keep nothing."""
        for path in (self._meta, self.part, self.data):
            path.unlink(missing_ok=True)

    def mark_used(self) -> None:
        """Let it be removed after those that were used before."""
        os.utime(self.folder)

    def used(self) -> float:
        """When it was used last."""
        try:
            return self.folder.stat().st_mtime
        except FileNotFoundError:
            return 0.0

    def size(self) -> int:
        """The bytes it takes."""
        return (_size(self.data) or 0) + (_size(self.part) or 0)

    def remove(self) -> int:
        """Remove it, unless someone is at it; the bytes that this freed."""
        with _lock_path(self.folder).open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return 0
            size = self.size()
            shutil.rmtree(self.folder, ignore_errors=True)
            return size

    def _save(self, meta: FileMeta) -> None:
        new = self._meta.with_suffix(".new")
        new.write_text(json.dumps(asdict(meta)), "utf-8")
        new.replace(self._meta)


def _lock_path(folder: Path) -> Path:
    # Beside the entry, and never removed: a removed lock could be held twice.
    return folder.with_suffix(".lock")


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return None
