"""Images and captions that a user collects for a job, in a folder that consoles may share.

They become an archive, which a job takes. Files keep their names, which must be plain file names.
"""

import shutil
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePath

from tasks.data.formats import READ_NAMES, SUFFIXES, format_of_name

_MAX_NAME_BYTES = 120
ACCEPTED = (*sorted(SUFFIXES), ".txt", ".zip")
"""Suffixes of the files that can be added."""


class NotAddedError(ValueError):
    """The file cannot be added."""


@dataclass(frozen=True)
class CollectedImage:
    """An image of a collection.

    Attributes:
        name: Its file name.
        caption: Text of the caption file; None without one.
    """

    name: str
    caption: str | None


class ImageCollection:
    """Images and captions, or one archive instead.

    Args:
        scratch: Folder of all collections.
        name: Name of this one's folder, which is made with the first file.
        max_bytes: Maximum size of all files.
        free_bytes: Returns how much the account's collections may grow.
    """

    def __init__(
        self,
        scratch: Path,
        name: str,
        max_bytes: int,
        free_bytes: Callable[[], int] | None = None,
    ) -> None:
        self.scratch, self._max_bytes, self._free_bytes = scratch, max_bytes, free_bytes
        self._folder = scratch / name

    @property
    def archive(self) -> str | None:
        """Name of the archive that was added instead of images."""
        return next((path.name for path in self._files() if path.suffix.lower() == ".zip"), None)

    @property
    def is_empty(self) -> bool:
        """Whether nothing was added."""
        return self.archive is None and not self.images()

    @property
    def size(self) -> int:
        """Size of all files in bytes."""
        return sum(path.stat().st_size for path in self._files())

    def add(self, name: str, source: Path) -> None:
        """Move a file into the collection; an archive replaces all files, and they replace it.

        Raises:
            NotAddedError: The file is unsuitable.
        """
        self._check(name, source.stat().st_size)
        if name.lower().endswith(".zip") or self.archive is not None:
            self.clear()
        if name.lower().endswith(".txt"):
            name = f"{name[:-4]}.txt"
        self._folder.mkdir(parents=True, exist_ok=True)
        shutil.move(source, self._folder / name)

    def images(self) -> list[CollectedImage]:
        """Return the images, by name."""
        found = [path for path in self._files() if path.suffix.lower() in SUFFIXES]
        return [CollectedImage(path.name, _caption(path)) for path in sorted(found)]

    def path_of(self, name: str) -> Path | None:
        """Return the path of a file; None if the collection has no such file."""
        path = self._folder / name
        return path if name == PurePath(name).name and path.is_file() else None

    def remove(self, name: str) -> None:
        """Remove a file and its caption."""
        path = self.path_of(name)
        if path is not None:
            path.unlink()
            if path.suffix.lower() in SUFFIXES:
                path.with_suffix(".txt").unlink(missing_ok=True)

    def write_caption(self, name: str, caption: str) -> None:
        """Write an image's caption; an empty one removes it."""
        path = self.path_of(name)
        if path is None:
            return
        if caption.strip():
            path.with_suffix(".txt").write_text(caption.strip() + "\n", "utf-8")
        else:
            path.with_suffix(".txt").unlink(missing_ok=True)

    def pack(self) -> Path:
        """Return an archive of all files; it exists as long as the collection."""
        assert not self.is_empty, "there is nothing to pack"
        if self.archive is not None:
            return self._folder / self.archive
        packed = self._packed
        # Images do not compress further.
        with zipfile.ZipFile(packed, "w", zipfile.ZIP_STORED) as archive:
            for path in sorted(self._files()):
                # One date for all files: the same images make the same archive.
                info = zipfile.ZipInfo(path.name)
                with path.open("rb") as source, archive.open(info, "w", force_zip64=True) as target:
                    shutil.copyfileobj(source, target, 2**20)
        return packed

    def clear(self) -> None:
        """Remove all files."""
        shutil.rmtree(self._folder, ignore_errors=True)
        self._packed.unlink(missing_ok=True)

    @property
    def _packed(self) -> Path:
        return self._folder.with_name(f"{self._folder.name}.zip")

    def _files(self) -> list[Path]:
        return list(self._folder.iterdir()) if self._folder.is_dir() else []

    def _check(self, name: str, length: int) -> None:
        suffix = PurePath(name).suffix.lower()
        if name != PurePath(name).name or name.startswith(".") or not name.isprintable():
            raise NotAddedError(f"{name!r} is not a file name")
        if len(name.encode("utf-8", "surrogatepass")) > _MAX_NAME_BYTES:
            raise NotAddedError(f"the name {name[:20]}… has more than {_MAX_NAME_BYTES} bytes")
        format = format_of_name(name)
        if format is not None and suffix not in ACCEPTED:
            raise NotAddedError(f"{name} {format.refusal}; {format.remedy}")
        if suffix not in ACCEPTED:
            types = f"{READ_NAMES}, .txt, .zip"
            raise NotAddedError(f"{name} has none of the types {types}")
        if self.size + length > self._max_bytes:
            raise NotAddedError(
                f"{name} exceeds the limit of {self._max_bytes:,} bytes for all files"
            )
        if self._free_bytes is not None and length > self._free_bytes():
            raise NotAddedError(f"{name} has no room beside the images of your other open forms")


def _caption(image: Path) -> str | None:
    try:
        return image.with_suffix(".txt").read_text("utf-8").strip()
    except FileNotFoundError:
        return None
    except UnicodeDecodeError:
        # The check reports the file.
        return ""
