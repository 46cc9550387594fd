"""Dataset sources: where each image is, and its caption. Fetches, unpacks, reads no images.

Whatever the source, it becomes a mapping from names to local files, and names are never used as
paths of ours.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from threading import Lock
from urllib.parse import quote

from tasks.data.archives import unpack
from tasks.data.download.downloads import Downloads
from tasks.data.download.protocol import DownloadError
from tasks.data.hub import fetch_hub
from tasks.data.images import SUFFIXES
from tasks.data.read_policy import OBJECT_SCHEMES, DeniedError, ReadPolicy
from tasks.data.uploads import NoUploadError, StoredUploads, is_upload
from tasks.dataset import MAX_CAPTION_BYTES, MAX_ITEMS
from tasks.errors import Problem
from tasks.jobs.datasets import (
    ArchiveDatasetConfig,
    DatasetConfig,
    HFHubImageCaptionDatasetConfig,
    ImageCaptionDirDatasetConfig,
    ImageCaptionJsonlDatasetConfig,
    ImageDirDatasetConfig,
)
from tasks.urls import redact_urls

# A JSONL file is read whole; a million rows with long captions stay below this.
_MAX_JSONL_BYTES = 2**30
# Downloads at a time.
_THREADS = 8


@dataclass(frozen=True)
class Item:
    """One image with its caption.

    Attributes:
        path: The image's file.
        name: What it is called in messages.
        caption: Its caption, stripped; empty where none is used.
        mask: Its mask's file, where it has one that is used.
        part: Which of the data loader's sources it is of.
    """

    path: Path
    name: str
    caption: str
    mask: Path | None = None
    part: int = 0


@dataclass
class Listing:
    """What a source holds, and what is wrong with it."""

    location: str
    items: list[Item] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    warnings: list[Problem] = field(default_factory=list)


class _SourceError(Exception):
    """Nothing of the source can be read."""


class Sources:
    """Reads datasets from wherever they are.

    Args:
        access: What may be read.
        downloads_dir: Where downloads are kept for later jobs.
        scratch_dir: Where archives are unpacked; the caller removes it.
        on_progress: Told how many bytes of a download are there, and how many there will be.
        uploads: What the job's tenant has uploaded; None where there is no store to look in.
    """

    def __init__(
        self,
        access: ReadPolicy,
        downloads_dir: Path,
        scratch_dir: Path,
        on_progress: Callable[[int, int | None], None] | None = None,
        uploads: StoredUploads | None = None,
    ) -> None:
        self._access, self._uploads = access, uploads
        self._downloads = Downloads(downloads_dir, access)
        self._scratch_dir = scratch_dir
        self._on_progress = on_progress
        self._folders = 0

    def listing(
        self, config: DatasetConfig, *, captions: bool = True, masks: bool = False
    ) -> Listing:
        """Every image of a dataset, in the order of their names or lines.

        Args:
            config: The dataset.
            captions: Whether captions are used: they must be there then.
            masks: Whether masks are used: they may be there then.
        """
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
        except _SourceError as error:
            return Listing(_where(config), problems=[Problem(_where(config), str(error))])
        except DownloadError as error:
            return Listing(_where(config), problems=[error.problem("")])
        except DeniedError as error:
            return Listing(_where(config), problems=[Problem("", str(error))])
        except NoUploadError as error:
            return Listing(_where(config), problems=[Problem(_where(config), str(error))])
        raise TypeError(f"no source of this kind: {config}")

    def _folder(self, place: str, *, captions: bool) -> Listing:
        listing = Listing(redact_urls(place))
        if _is_cloud(place):
            prefix = place.rstrip("/")
            names = [name for name in self._downloads.list_objects(prefix) if _is_of_use(name)]
            found = self._fetched(prefix, names, listing)
            return _pairs(listing, found, captions=captions)
        if "://" in place:
            raise _SourceError("an address of this kind has no list of files; use an ARCHIVE")
        folder = Path(place)
        self._access.check_path(folder)
        names, not_unicode = _names_in(folder)
        for name in not_unicode:
            readable = os.fsencode(name).decode("utf-8", "replace")
            listing.problems.append(Problem(readable, "has a name that is not UTF-8", "rename it"))
        files = {}
        for name in names:
            try:
                # Of interest for links only.
                self._access.check_path(folder / name)
                files[name] = folder / name
            except DeniedError:
                listing.problems.append(Problem(name, "is a link to where datasets may not lie"))
        return _pairs(listing, files, captions=captions)

    def _jsonl(
        self, config: ImageCaptionJsonlDatasetConfig, *, captions: bool, masks: bool
    ) -> Listing:
        place = config.jsonl_path
        listing = Listing(redact_urls(place))
        if "://" in place:
            path = self._downloads.fetch(place, on_progress=self._on_progress)
            rows = _Rows(
                listing, config, path, PurePosixPath(listing.location).name, captions, masks
            )
            base = place.partition("?")[0].rpartition("/")[0]
            wanted = sorted({name for row in rows.found for name in row.files if _is_inside(name)})
            files = self._fetched(base, wanted, listing)
            return rows.resolved(lambda name: _of_mapping(files, PurePosixPath(), name))
        path = Path(place)
        self._access.check_path(path)
        rows = _Rows(listing, config, path, path.name, captions, masks)
        return rows.resolved(lambda name: _inside(path.parent, name))

    def _archive(self, config: ArchiveDatasetConfig, *, captions: bool, masks: bool) -> Listing:
        listing = Listing(_where(config))
        if is_upload(config.archive):
            path = self._upload(config.archive)
            _check_archive(path, config.sha256)
        elif "://" in config.archive:
            path = self._downloads.fetch(
                config.archive, sha256=config.sha256, on_progress=self._on_progress
            )
        else:
            path = Path(config.archive)
            self._access.check_path(path)
            _check_archive(path, config.sha256)
        unpacked = unpack(path, self._new_folder(), max_bytes=self._access.max_bytes)
        listing.problems += unpacked.problems
        if config.jsonl is None:
            return _pairs(listing, unpacked.files, captions=captions)
        rows_file = unpacked.files.get(config.jsonl)
        if rows_file is None:
            raise _SourceError(f"holds no file {config.jsonl}")
        rows = _Rows(listing, config, rows_file, config.jsonl, captions, masks)
        folder = PurePosixPath(config.jsonl).parent
        return rows.resolved(lambda name: _of_mapping(unpacked.files, folder, name))

    def _upload(self, place: str) -> Path:
        if self._uploads is None:
            raise NoUploadError("uploads are read from the store, and there is none here")
        return self._uploads.path_of(place, self._scratch_dir / "uploads")

    def _hub(self, config: HFHubImageCaptionDatasetConfig, *, captions: bool) -> Listing:
        if config.hf_cache_dir is not None:
            self._access.check_path(Path(config.hf_cache_dir))
        found = fetch_hub(
            config, self._new_folder(), captions=captions, max_bytes=self._access.max_bytes
        )
        listing = Listing(config.dataset_name, problems=found.problems, warnings=found.warnings)
        for name, path, caption in found.files:
            _add(listing, path, name, caption)
        return listing if found.problems else _with_size_checked(listing, len(found.files))

    def _fetched(self, base: str, names: Sequence[str], listing: Listing) -> dict[str, Path]:
        """The files of these names below an address; what cannot be fetched is a fault."""
        came, counting = 0, Lock()

        def fetch(name: str) -> Path | Problem:
            nonlocal came
            if came > self._access.max_bytes:
                return Problem(name, "is not fetched any more")
            try:
                # An object's key is no URL: only an address of the web is quoted.
                path = self._downloads.fetch(
                    f"{base}/{name if _is_cloud(base) else quote(name)}",
                    on_progress=self._on_progress,
                )
            except DownloadError as error:
                return error.problem(name)
            except DeniedError as error:
                return Problem(name, str(error))
            size = path.stat().st_size
            with counting:
                came += size
            return path

        with ThreadPoolExecutor(_THREADS) as pool:
            found = dict(zip(names, pool.map(fetch, names), strict=True))
        if came > self._access.max_bytes:
            raise _SourceError(f"holds over {self._access.max_bytes:,} bytes, the most")
        listing.problems += [it for it in found.values() if isinstance(it, Problem)]
        return {name: it for name, it in found.items() if isinstance(it, Path)}

    def _new_folder(self) -> Path:
        self._folders += 1
        folder = self._scratch_dir / f"source-{self._folders}"
        folder.mkdir(parents=True)
        return folder


@dataclass(frozen=True)
class _Row:
    location: str
    image: str
    caption: str | None
    mask: str | None

    @property
    def files(self) -> tuple[str, ...]:
        return (self.image,) if self.mask is None else (self.image, self.mask)


class _Rows:
    """The rows of a JSONL file."""

    def __init__(
        self,
        listing: Listing,
        config: ImageCaptionJsonlDatasetConfig | ArchiveDatasetConfig,
        path: Path,
        name: str,
        captions: bool,
        masks: bool,
    ) -> None:
        self._listing = listing
        numbered = list(_lines(path))
        self._count = len(numbered)
        self.found: list[_Row] = []
        for number, line in numbered[:MAX_ITEMS]:
            where = f"{name} line {number}"
            try:
                row = _row(line)
                mask = masks and row.get(config.mask_column)
                self.found.append(
                    _Row(
                        where,
                        _text(row, config.image_column),
                        _text(row, config.caption_column) if captions else None,
                        _text(row, config.mask_column) if mask else None,
                    )
                )
            except ValueError as error:
                listing.problems.append(Problem(where, str(error)))

    def resolved(self, find: Callable[[str], Path]) -> Listing:
        """The listing, each name found by ``find``, which raises ValueError where it is not."""
        for row in self.found:
            try:
                mask = None if row.mask is None else find(row.mask)
                file = find(row.image)
            except ValueError as error:
                self._listing.problems.append(Problem(row.location, str(error)))
                continue
            _add(self._listing, file, f"{row.location} ({row.image})", row.caption, mask)
        return _with_size_checked(self._listing, self._count)


def _where(config: DatasetConfig) -> str:
    names = ("dataset_dir", "jsonl_path", "archive", "dataset_name")
    place = next(getattr(config, name) for name in names if hasattr(config, name))
    return str(redact_urls(place))


def _is_cloud(place: str) -> bool:
    return place.partition("://")[0] in OBJECT_SCHEMES and "://" in place


def _is_of_use(name: str) -> bool:
    return PurePosixPath(name).suffix.lower() in {*SUFFIXES, ".txt"}


def _names_in(folder: Path) -> tuple[list[str], list[str]]:
    """The names of a folder's files, and those that are not UTF-8."""
    try:
        found = sorted(entry.name for entry in os.scandir(folder) if entry.is_file())
    except (FileNotFoundError, NotADirectoryError, ValueError) as error:
        raise _SourceError("there is no such folder on this worker") from error
    except OSError as error:
        raise _SourceError(f"cannot be read: {error.strerror}") from error
    names = [name for name in found if _is_unicode(name)]
    return names, sorted(set(found) - set(names))


def _check_archive(path: Path, sha256: str | None) -> None:
    try:
        with path.open("rb") as file:
            digest = sha256 and hashlib.file_digest(file, "sha256").hexdigest()
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError, ValueError) as error:
        raise _SourceError("there is no such file on this worker") from error
    except OSError as error:
        raise _SourceError(f"cannot be read: {error.strerror}") from error
    if digest != sha256:
        raise _SourceError(f"has the SHA-256 {digest}, and not that of the job")


def _pairs(listing: Listing, files: Mapping[str, Path], *, captions: bool) -> Listing:
    """Images with the captions beside them."""
    images = [name for name in sorted(files) if PurePosixPath(name).suffix.lower() in SUFFIXES]
    if not captions:
        listing.items = [Item(files[name], name, "") for name in images[:MAX_ITEMS]]
        return _with_size_checked(listing, len(images))
    for name in images[:MAX_ITEMS]:
        caption = str(PurePosixPath(name).with_suffix(".txt"))
        if caption not in files:
            remedy = f"write it into {PurePosixPath(caption).name}"
            listing.problems.append(Problem(name, "has no caption", remedy))
            continue
        _add(listing, files[name], name, _caption_file(files[caption], caption))
    stems = {str(PurePosixPath(name).with_suffix("")) for name in images}
    for name in sorted(files):
        if name.endswith(".txt") and str(PurePosixPath(name).with_suffix("")) not in stems:
            problem = "is the caption of no image; it is not used"
            listing.warnings.append(Problem(name, problem))
    return _with_size_checked(listing, len(images))


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a JSONL file that hold something, with their numbers."""
    try:
        if not path.is_file():
            raise _SourceError("there is no such file on this worker")
        if path.stat().st_size > _MAX_JSONL_BYTES:
            raise _SourceError(f"is larger than {_MAX_JSONL_BYTES // 2**20} MiB")
        # Not splitlines(): captions may hold line separators that end no line of JSONL.
        lines = path.read_text("utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise _SourceError(f"cannot be read: {error}") from error
    return ((number, line) for number, line in enumerate(lines, start=1) if line.strip())


def _row(line: str) -> dict[str, object]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"is no JSON: {error.msg} at column {error.colno}") from error
    except RecursionError as error:
        raise ValueError("is nested too deeply") from error
    if not isinstance(row, dict):
        raise ValueError("is no JSON object")
    return row


def _text(row: dict[str, object], column: str) -> str:
    value = row.get(column)
    if not isinstance(value, str):
        raise ValueError(f"has no text in the column {column!r}")
    if not _is_unicode(value):
        raise ValueError(f"has half a character (a lone surrogate) in the column {column!r}")
    return value


def _inside(folder: Path, name: str) -> Path:
    """The file that a row names, which must lie in the JSONL file's folder, links followed."""
    try:
        file = (folder / name).resolve()
        is_inside, is_there = file.is_relative_to(folder.resolve()), file.is_file()
    except (OSError, RuntimeError, ValueError) as error:  # too long, a circle of links, a NUL
        raise ValueError(f"names {name!r}, which cannot be opened") from error
    if not is_inside:
        raise ValueError(f"names {name!r}, which is outside the dataset's folder")
    if not is_there:
        raise ValueError(f"there is no image {name}")
    return file


def _of_mapping(files: Mapping[str, Path], folder: PurePosixPath, name: str) -> Path:
    """The file that a row names, of those there are."""
    if not _is_inside(name):
        raise ValueError(f"names {name!r}, which is outside the dataset's folder")
    file = files.get(str(folder / name))
    if file is None:
        raise ValueError(f"there is no image {name}")
    return file


def _is_inside(name: str) -> bool:
    """Whether a name stays below where it starts."""
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts and "://" not in name


def _is_unicode(text: str) -> bool:
    """Whether text can be written as UTF-8, as JSON and the store need it."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _caption_file(path: Path, name: str) -> str | Problem:
    try:
        if path.stat().st_size > MAX_CAPTION_BYTES:
            problem = f"is longer than {MAX_CAPTION_BYTES} bytes; captions are short"
            return Problem(name, problem)
        return path.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        return Problem(name, f"cannot be read as UTF-8 text: {error}", "save it as UTF-8")


def _add(
    listing: Listing,
    path: Path,
    name: str,
    caption: str | Problem | None,
    mask: Path | None = None,
) -> None:
    if caption is None:
        listing.items.append(Item(path, name, "", mask))
    elif isinstance(caption, Problem):
        listing.problems.append(caption)
    elif not caption.strip():
        listing.problems.append(Problem(name, "has an empty caption", "say what the image shows"))
    elif len(caption.encode()) > MAX_CAPTION_BYTES:
        listing.problems.append(Problem(name, f"has a caption of over {MAX_CAPTION_BYTES} bytes"))
    else:
        listing.items.append(Item(path, name, caption.strip(), mask))


def _with_size_checked(listing: Listing, found: int) -> Listing:
    if not found:
        kinds = ", ".join(sorted(SUFFIXES))
        listing.problems.append(Problem(listing.location, f"holds no image ({kinds})"))
    if found > MAX_ITEMS:
        listing.problems.append(
            Problem(listing.location, f"holds {found:,} images; the most is {MAX_ITEMS:,}")
        )
    return listing
