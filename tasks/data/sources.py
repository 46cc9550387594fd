"""Dataset sources: fetch or unpack a dataset of any kind, and list its images and captions.

Every source becomes a mapping from names to local files. A name from a dataset is never used as a
path on this machine.
"""

import hashlib
import os
import posixpath
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Literal
from urllib.parse import quote

from tasks.data.contents import Kind, kind_of, system_part
from tasks.data.decoding.decoder_pool import DecodeError, unpack_archive
from tasks.data.download.downloads import Downloads
from tasks.data.download.object_store import MAX_NAMES
from tasks.data.download.pace import MIN_BYTES_PER_S
from tasks.data.download.protocol import DownloadError
from tasks.data.hub import fetch_hub
from tasks.data.jsonl import JsonlRows, find_in_files, find_in_folder
from tasks.data.listing import Listing, SourceError, is_unicode, pair_captions, source_error
from tasks.data.memory_budget import map_in_threads
from tasks.data.opening import names_below, open_resolved
from tasks.data.read_policy import OBJECT_SCHEMES, DeniedError, ReadPolicy
from tasks.data.uploads import NoUploadError, StoredUploads, is_upload
from tasks.errors import Problem
from tasks.escaping import shortened
from tasks.jobs.datasets import (
    ArchiveDatasetConfig,
    DatasetConfig,
    HFHubImageCaptionDatasetConfig,
    ImageCaptionDirDatasetConfig,
    ImageCaptionJsonlDatasetConfig,
    ImageDirDatasetConfig,
)
from tasks.jobs.field_metadata import Location, marker_of, options_of
from tasks.urls import redact_urls

_SOURCES = (Location.DATASET, Location.ARCHIVE, Location.HUB_DATASET)
# Enough to hide the latency of a store; more only compete for the line.
_PARALLEL_DOWNLOADS = 8
# Failed downloads of a dataset; one that was interrupted may have taken minutes, and counts more.
_MAX_FAILURES, _INTERRUPTION = 100, 10
# The time for the files of a dataset, besides that for their bytes: a server may delay each one.
_START_S, _FILE_S = 600.0, 0.5


class Sources:
    """Reads datasets from local folders and files, URLs, uploads and the Hub.

    Args:
        policy: The operator's rules.
        downloads_dir: The folder that keeps downloads for later jobs.
        scratch_dir: The folder that archives are unpacked into; the caller removes it.
        on_progress: Receives the bytes of a download that are stored, and its size if known.
        uploads: The uploads of the job's tenant; None if there is no store to read them from.
        check_stop: Called a few times a second while files are downloaded and read. An exception
            that it raises ends the work.
        loose_archives: Archives that are folders of loose files, by their source.
    """

    def __init__(
        self,
        policy: ReadPolicy,
        downloads_dir: Path,
        scratch_dir: Path,
        on_progress: Callable[[int, int | None], None] | None = None,
        uploads: StoredUploads | None = None,
        check_stop: Callable[[], object] = lambda: None,
        loose_archives: Mapping[str, Path] | None = None,
    ) -> None:
        self._policy, self._uploads = policy, uploads
        self._loose_archives = loose_archives or {}
        # Resolved: items are opened by ``open_resolved``.
        self._downloads = Downloads(downloads_dir.resolve(), policy, check_stop)
        self._scratch_dir = scratch_dir.resolve()
        self._on_progress, self._check_stop = on_progress, check_stop
        self._folders = 0

    def listing(
        self, config: DatasetConfig, *, captions: bool = True, masks: bool = False
    ) -> Listing:
        """Return every image of a dataset, in the order of its names or lines.

        Args:
            config: The dataset.
            captions: Whether captions are used, which must then exist.
            masks: Whether masks are used, which may then exist.
        """
        location = _location(config)
        try:
            match config:
                case ImageDirDatasetConfig():
                    return self._folder(config.dataset_dir, captions=False)
                case ImageCaptionDirDatasetConfig():
                    return self._folder(config.dataset_dir, captions=captions)
                case ImageCaptionJsonlDatasetConfig():
                    return self._jsonl(config, captions=captions, masks=masks)
                case ArchiveDatasetConfig():
                    return self._archive(config, captions=captions, masks=masks)
                case HFHubImageCaptionDatasetConfig():
                    return self._hub(config, captions=captions)
        except (SourceError, NoUploadError) as error:
            return Listing(location, problems=[Problem(location, str(error))])
        except DownloadError as error:
            return Listing(location, problems=[error.problem("")])
        except DeniedError as error:
            return Listing(location, problems=[Problem("", str(error))])
        raise TypeError(f"unknown kind of dataset: {config}")

    def _folder(self, source: str, *, captions: bool) -> Listing:
        listing = Listing(redact_urls(source), check_stop=self._check_stop)
        if _is_object_url(source):
            prefix = source.rstrip("/")
            names = [it for it in self._downloads.list_objects(prefix) if not it.endswith("/")]
            files = self._fetch_all(prefix, [it for it in names if _is_used(it)], listing)
            others = [name for name in names if name and not _is_used(name)]
            return pair_captions(listing, files, others, captions=captions)
        if "://" in source:
            raise SourceError("a web address has no list of files; use an ARCHIVE")
        folder = self._resolved(source, "folder")
        files, others = {}, []
        for name in self._names_below(folder):
            try:
                if "/" in name or not _is_used(name):
                    others.append(_readable(name))
                elif not is_unicode(name):
                    message = "has a name that is not UTF-8"
                    listing.problems.append(Problem(_readable(name), message, "rename it"))
                else:
                    # The folder is allowed, but a link in it may lead elsewhere.
                    files[name] = self._policy.resolved(folder / name)
            except DeniedError:
                listing.problems.append(Problem(name, "is a link to outside TRAINING_DATA_ROOTS"))
            except OSError as error:
                listing.problems.append(Problem(name, str(source_error(error, "file"))))
        return pair_captions(listing, files, others, captions=captions, reads_subfolders=False)

    def _names_below(self, folder: Path) -> list[str]:
        """Return the names of all files below a folder, sorted; see ``names_below``."""

        def enters(path: str) -> bool:
            self._check_stop()
            return not system_part(path)

        names: list[str] = []
        try:
            for name in names_below(folder, enters):
                names.append(name)
                if len(names) > MAX_NAMES:
                    raise SourceError(f"has over {MAX_NAMES:,} files below it")
        except OSError as error:
            raise source_error(error, "folder") from error
        return sorted(names)

    def _jsonl(
        self, config: ImageCaptionJsonlDatasetConfig, *, captions: bool, masks: bool
    ) -> Listing:
        source = config.jsonl_path
        listing = Listing(redact_urls(source), check_stop=self._check_stop)
        read_rows = partial(JsonlRows, listing, config, captions=captions, masks=masks)
        if "://" in source:
            path = self._downloads.fetch(source, on_progress=self._on_progress)
            rows = read_rows(path, PurePosixPath(listing.location).name)
            base = source.partition("?")[0].rpartition("/")[0]
            files = self._fetch_all(base, rows.file_names(), listing)
            return rows.resolve(partial(find_in_files, files, PurePosixPath()))
        path = self._resolved(source, "file")
        rows = read_rows(path, Path(source).name)
        try:
            names = self._names_below(self._resolved(str(path.parent), "folder"))
        except DeniedError:  # of the folder, only the file is allowed
            names = []
        # A row may name a file in a folder that is a link.
        entered = [_readable(name) for name in names if not name.endswith("/")]
        return rows.resolve(partial(find_in_folder, path.parent), entered)

    def _archive(self, config: ArchiveDatasetConfig, *, captions: bool, masks: bool) -> Listing:
        listing = Listing(_location(config), check_stop=self._check_stop)
        if (loose := self._loose_archives.get(config.archive)) is not None:
            try:
                files = {path.name: path for path in loose.resolve().iterdir()}
            except FileNotFoundError as error:
                raise SourceError("its images were removed before they were checked") from error
            return pair_captions(listing, files, captions=captions)
        path = self._archive_file(config)
        try:
            unpacked = unpack_archive(
                path,
                self._new_folder(),
                max_bytes=self._policy.max_bytes,
                check_stop=self._check_stop,
            )
        except DecodeError as error:
            raise SourceError(str(error)) from error
        listing.problems += unpacked.problems
        if config.jsonl is None:
            return pair_captions(listing, unpacked.files, unpacked.others, captions=captions)
        jsonl = unpacked.files.get(config.jsonl)
        if jsonl is None:
            raise SourceError(f"has no file {shortened(config.jsonl)}")
        rows = JsonlRows(listing, config, jsonl, config.jsonl, captions=captions, masks=masks)
        folder = PurePosixPath(config.jsonl).parent
        names = [*unpacked.files, *unpacked.others]
        if folder != PurePosixPath():
            names = [posixpath.relpath(name, folder) for name in names]
        return rows.resolve(partial(find_in_files, unpacked.files, folder), names)

    def _archive_file(self, config: ArchiveDatasetConfig) -> Path:
        """Return the local file of an archive, its digest checked."""
        if is_upload(config.archive):
            path = self._upload(config.archive)
        elif "://" in config.archive:
            return self._downloads.fetch(
                config.archive, sha256=config.sha256, on_progress=self._on_progress
            )
        else:
            path = self._resolved(config.archive, "file")
        _check_digest(path, config.sha256)
        return path

    def _upload(self, source: str) -> Path:
        if self._uploads is None:
            raise NoUploadError("is an upload, which can be read only where the store is available")
        return self._uploads.path_of(source, self._scratch_dir / "uploads").resolve()

    def _hub(self, config: HFHubImageCaptionDatasetConfig, *, captions: bool) -> Listing:
        if config.hf_cache_dir is not None:
            self._resolved(config.hf_cache_dir, "folder")
        rows = fetch_hub(
            config,
            self._new_folder(),
            captions=captions,
            max_bytes=self._policy.max_bytes,
            check_stop=self._check_stop,
        )
        listing = Listing(config.dataset_name, problems=rows.problems, warnings=rows.warnings)
        for name, path, caption in rows.files:
            listing.add(path, name, caption)
        if not rows.problems:
            listing.check_count(len(rows.files))
        return listing

    def _fetch_all(self, base: str, names: Sequence[str], listing: Listing) -> dict[str, Path]:
        """Download the files of these names below a URL; add a problem for each failure.

        Raises:
            SourceError: The files are larger than the operator allows.
            DownloadError: The server is too slow.
        """

        def fetch(name: str) -> Path | Problem:
            try:
                # An object's name is taken literally; only a web address is quoted.
                return self._downloads.fetch(
                    f"{base}/{name if _is_object_url(base) else quote(name)}",
                    on_progress=self._on_progress,
                )
            except DownloadError as error:
                return error.problem(name)
            except DeniedError as error:
                return Problem(name, str(error))

        files: dict[str, Path] = {}
        total, failures, began_s = 0, 0, time.monotonic()
        outcomes = map_in_threads(fetch, names, _PARALLEL_DOWNLOADS, check_stop=self._check_stop)
        for name, outcome in zip(names, outcomes, strict=False):
            if isinstance(outcome, Path):
                files[name] = outcome
                total += outcome.stat().st_size
                allowed_s = _START_S + _FILE_S * len(files) + total / MIN_BYTES_PER_S
                if time.monotonic() - began_s > allowed_s:
                    message = f"{listing.location} is sent too slowly: {len(files):,} files so far"
                    raise DownloadError(message, retryable=True)
                if total > self._policy.max_bytes:
                    message = f"is larger than {self._policy.max_bytes:,} bytes, the maximum"
                    raise SourceError(message)
                continue
            listing.problems.append(outcome)
            failures += _INTERRUPTION if outcome.retryable else 1
            if failures >= _MAX_FAILURES:
                message = "other files were not downloaded: too many downloads failed"
                retryable = outcome.retryable
                listing.problems.append(Problem(listing.location, message, retryable=retryable))
                break
        return files

    def _resolved(self, source: str, kind: Literal["file", "folder"]) -> Path:
        """Return a local path, its links resolved and the operator's rules checked."""
        try:
            return self._policy.resolved(Path(source))
        except OSError as error:
            raise source_error(error, kind) from error

    def _new_folder(self) -> Path:
        self._folders += 1
        folder = self._scratch_dir / f"source-{self._folders}"
        folder.mkdir(parents=True)
        return folder


def _location(config: DatasetConfig) -> str:
    return next(
        str(redact_urls(option.value))
        for option in options_of(config)
        if marker_of(option.field, Location) in _SOURCES
    )


def _is_object_url(source: str) -> bool:
    return source.partition("://")[0] in OBJECT_SCHEMES and "://" in source


def _is_used(name: str) -> bool:
    return kind_of(name) in (Kind.IMAGE, Kind.CAPTION) and not system_part(name)


def _readable(name: str) -> str:
    """Return a file's name as text, if it is not UTF-8."""
    return name if is_unicode(name) else os.fsencode(name).decode("utf-8", "replace")


def _check_digest(path: Path, sha256: str | None) -> None:
    """Check that a file can be read, and has a digest if one is given."""
    try:
        with open_resolved(path) as file:
            digest = sha256 and hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise source_error(error, "file") from error
    if digest != sha256:
        raise SourceError(f"has the SHA-256 {digest}, not the job's")
