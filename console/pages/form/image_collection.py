"""Images and captions that are being gathered for a job, in a folder of their own.

They become an archive, which is what a job takes. Names are those that people's files have: they
are kept, and lead nowhere.
"""

import shutil
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path, PurePath

from tasks.data.images import SUFFIXES

_LONGEST_NAME = 120
ACCEPTED = (*sorted(SUFFIXES), ".txt", ".zip")
"""What can be added, by the end of its name."""


class NotAddedError(ValueError):
    """A file that is of no use; says why."""


@dataclass(frozen=True)
class CollectedImage:
    """An image of a collection.

    Attributes:
        name: Its file's name.
        caption: Beside it; None where there is none.
    """

    name: str
    caption: str | None


class Collection:
    """Images and captions, or one archive in their place.

    Args:
        scratch: Where its folder is made.
        most_bytes: The most that it may take.
    """

    def __init__(self, scratch: Path, most_bytes: int) -> None:
        self.scratch, self._most_bytes = scratch, most_bytes
        self._folder: Path | None = None
        self.archive: str | None = None
        """The name of the archive that was added, in place of images."""

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing in it."""
        return self.archive is None and not self.images()

    def add(self, name: str, source: Path) -> None:
        """Move a file into the collection; an archive takes the place of all that was there.

        Raises:
            NotAddedError: It is of no use.
        """
        self._check(name, source.stat().st_size)
        if name.lower().endswith(".zip"):
            self.clear()
            self.archive = name
        elif self.archive is not None:
            self.clear()
        shutil.move(source, self._path(name))

    def images(self) -> list[CollectedImage]:
        """The images, by name."""
        if self._folder is None:
            return []
        found = [path for path in self._folder.iterdir() if path.suffix.lower() in SUFFIXES]
        return [CollectedImage(it.name, _caption(it)) for it in sorted(found)]

    def path_of(self, name: str) -> Path | None:
        """The file of a name; None where there is none."""
        known = self._folder is not None and name == PurePath(name).name
        path = self._path(name) if known else None
        return path if path is not None and path.is_file() else None

    def remove(self, name: str) -> None:
        """Take a file out, and the caption beside it."""
        path = self.path_of(name)
        if path is not None:
            path.unlink()
            if path.suffix.lower() in SUFFIXES:
                path.with_suffix(".txt").unlink(missing_ok=True)

    def write_caption(self, name: str, caption: str) -> None:
        """Give an image another caption; an empty one is none."""
        path = self.path_of(name)
        if path is None:
            return
        if caption.strip():
            path.with_suffix(".txt").write_text(caption.strip() + "\n", "utf-8")
        else:
            path.with_suffix(".txt").unlink(missing_ok=True)

    def pack(self) -> Path:
        """The archive of all of it; the caller does not keep it longer than the collection."""
        assert self._folder is not None, "there is nothing to pack"
        if self.archive is not None:
            return self._path(self.archive)
        packed = self._folder.with_suffix(".zip")
        # Images are compressed already.
        with zipfile.ZipFile(packed, "w", zipfile.ZIP_STORED) as archive:
            for path in sorted(self._folder.iterdir()):
                # One date for all: the same images make the same archive.
                info = zipfile.ZipInfo(path.name)
                with path.open("rb") as source, archive.open(info, "w", force_zip64=True) as target:
                    shutil.copyfileobj(source, target, 2**20)
        return packed

    def clear(self) -> None:
        """Forget all of it."""
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder.with_suffix(".zip").unlink(missing_ok=True)
        self._folder, self.archive = None, None

    def _path(self, name: str) -> Path:
        if self._folder is None:
            self.scratch.mkdir(parents=True, exist_ok=True)
            self._folder = Path(tempfile.mkdtemp(prefix="images-", dir=self.scratch))
        return self._folder / name

    def _check(self, name: str, length: int) -> None:
        suffix = PurePath(name).suffix.lower()
        if name != PurePath(name).name or name.startswith(".") or not name.isprintable():
            raise NotAddedError(f"{name!r} is no name of a file")
        if len(name.encode("utf-8", "surrogatepass")) > _LONGEST_NAME:
            raise NotAddedError(f"the name of {name[:20]}… is longer than {_LONGEST_NAME} bytes")
        if suffix not in ACCEPTED:
            raise NotAddedError(f"{name} is none of {', '.join(ACCEPTED)}")
        there = sum(path.stat().st_size for path in self._folder.iterdir()) if self._folder else 0
        if there + length > self._most_bytes:
            raise NotAddedError(f"{name} makes more than {self._most_bytes:,} bytes in all")


def _caption(image: Path) -> str | None:
    try:
        return image.with_suffix(".txt").read_text("utf-8").strip()
    except FileNotFoundError:
        return None
    except UnicodeDecodeError:
        # The check names it.
        return ""
