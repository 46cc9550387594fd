"""Images and captions that a user collects, as loose files in a folder that consoles may share.

No added file replaces another one: of several files of one name, each gets a name of its own, and
its caption follows it. Packed, they become the archive that a job takes.
"""

import filecmp
import os
import secrets
import shutil
import zipfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path, PurePath, PurePosixPath

from tasks.data.contents import name_key, system_part
from tasks.data.formats import READ_NAMES, SUFFIXES, format_of_name
from tasks.data.listing import read_caption
from tasks.dataset import MAX_CAPTION_BYTES

_MAX_NAME_BYTES = 120
# Each listing reads the captions of all.
MAX_FILES = 10_000
"""Maximum number of images of a collection, and of its captions."""
ARCHIVES = (".zip", ".tar", ".tgz", ".gz")
"""Suffixes of archives, which are unpacked before their files are added."""
ACCEPTED = (*sorted(SUFFIXES), ".txt", *ARCHIVES)
"""Suffixes of the files that can be added."""


@dataclass(frozen=True)
class NewFile:
    """A file to add.

    Attributes:
        name: Its name, with the folders that it came from.
        path: The file; an image is moved.
        caption: The caption of an image; None if the file of its name, if there is one, has it.
    """

    name: str
    path: Path
    caption: Path | None = None


@dataclass(frozen=True)
class CollectedImage:
    """An image of a collection.

    Attributes:
        name: Its file name.
        caption: Text of the caption file; None without one.
        key: Names the state of its file, for thumbnails.
    """

    name: str
    caption: str | None
    key: str = ""


class ImageCollection:
    """Images and captions.

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
        self.folder = scratch / name
        """The folder of the files."""

    @property
    def is_empty(self) -> bool:
        """Whether there is no image."""
        return next(self._image_paths(), None) is None

    @property
    def size(self) -> int:
        """Size of all files in bytes."""
        return sum(_size(path) for path in self._files())

    def add(self, files: Iterable[NewFile]) -> list[str]:
        """Move files that belong together into the collection: images, each with its caption.

        An image whose name is taken gets another one, with its caption. A caption without an image
        belongs to the image of its name in the collection, whether it comes before or later. Files
        of operating systems are ignored.

        Returns:
            Why files were not added, or what was changed; empty if all were added as they are.
        """
        adding = _Adding(self)
        for file in files:
            if not system_part(file.name):
                adding.check(file)
        adding.run()
        return adding.notes

    def images(self) -> list[CollectedImage]:
        """Return the images, by name."""
        found = sorted(self._image_paths())
        return [CollectedImage(path.name, _caption(path), _key(path)) for path in found]

    def names(self) -> list[str]:
        """Return the names of the images."""
        return sorted(path.name for path in self._image_paths())

    def captions(self) -> list[Path]:
        """Return the caption files, those without an image too."""
        return [path for path in self._files() if path.suffix == ".txt"]

    def path_of(self, name: str) -> Path | None:
        """Return the path of a file; None if the collection has no such file."""
        path = self.folder / name
        is_name = name == PurePath(name).name and "\0" not in name
        return path if is_name and path.is_file() else None

    def remove(self, name: str) -> bool:
        """Remove an image and its caption; return whether it was there."""
        path = self.path_of(name)
        if path is None:
            return False
        path.unlink(missing_ok=True)
        if path.suffix.lower() in SUFFIXES:
            path.with_suffix(".txt").unlink(missing_ok=True)
        return True

    def write_caption(self, name: str, caption: str | None) -> bool:
        """Write an image's caption, or remove it; return whether there is such an image."""
        path = self.path_of(name)
        if path is None or path.suffix.lower() not in SUFFIXES:
            return False
        text = (caption or "").strip()
        if text:
            data = text.encode("utf-8", "replace")[: MAX_CAPTION_BYTES - 1]
            self._replace(path.with_suffix(".txt"), data.decode("utf-8", "ignore") + "\n")
        else:
            path.with_suffix(".txt").unlink(missing_ok=True)
        return True

    def edit_captions(self, edit: Callable[[CollectedImage], str]) -> dict[str, str | None]:
        """Change captions; return those that changed as they were, for an undo.

        Args:
            edit: Returns the new caption of an image.
        """
        former = {}
        for image in self.images():
            caption = edit(image).strip()
            if caption != (image.caption or ""):
                former[image.name] = image.caption
                self.write_caption(image.name, caption)
        return former

    def pack(self) -> Path:
        """Return a new archive of all files, beside their folder; the caller removes it."""
        assert not self.is_empty, "there is nothing to pack"
        # Another page may pack the same files.
        packed = self.folder.with_name(f"{self.folder.name}-{secrets.token_hex(4)}.zip")
        try:
            _write_archive(packed, sorted(self._files()))
        except BaseException:
            packed.unlink(missing_ok=True)
            raise
        return packed

    def clear(self) -> None:
        """Remove all files."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def free_bytes(self) -> int:
        """Return by how much the files may grow."""
        free = self._max_bytes - self.size
        return free if self._free_bytes is None else min(free, self._free_bytes())

    def _replace(self, path: Path, text: str) -> None:
        """Write a file as a whole: a full disk leaves the former one."""
        part = self.folder.with_name(f"{self.folder.name}-{secrets.token_hex(4)}.txt")
        try:
            part.write_text(text, "utf-8")
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)

    def _files(self) -> list[Path]:
        return list(self.folder.iterdir()) if self.folder.is_dir() else []

    def _image_paths(self) -> Iterator[Path]:
        return (path for path in self._files() if path.suffix.lower() in SUFFIXES)


class _Adding:
    """Files on their way into a collection.

    Args:
        collection: The collection.
    """

    def __init__(self, collection: ImageCollection) -> None:
        self.notes: list[str] = []
        self._folder = collection.folder
        self._free_bytes = collection.free_bytes()
        self._images = [collection.folder / name for name in collection.names()]
        self._stems = {name_key(path.stem) for path in self._images}
        self._captions = len(collection.captions())
        self._sizes: dict[int, list[Path]] = defaultdict(list)
        for path in self._images:
            self._sizes[_size(path)].append(path)
        # By the folders and the name without its suffix.
        self._groups: dict[str, list[NewFile]] = defaultdict(list)

    def check(self, file: NewFile) -> None:
        """Take a file that can be added, or note why it cannot."""
        path = PurePosixPath(file.name)
        size = file.path.stat().st_size + (file.caption.stat().st_size if file.caption else 0)
        problem = _name_problem(path.name)
        if not problem and size > self._free_bytes:
            problem = f"{path.name} is larger than the {max(0, self._free_bytes):,} bytes that are "
            problem += "left for the images of your open forms"
        if problem:
            self.notes.append(problem)
            return
        self._free_bytes -= size
        group = name_key(str(path.with_suffix("")))
        # Two images of one name and different suffixes may have a caption each.
        self._groups[f"{group}\n{file.name}" if file.caption else group].append(file)

    def run(self) -> None:
        """Move the files."""
        self._folder.mkdir(parents=True, exist_ok=True)
        for files in self._groups.values():
            captions = [file for file in files if file.name.lower().endswith(".txt")]
            images = [file for file in files if file not in captions]
            for image in images:
                if len(self._images) >= MAX_FILES:
                    message = f"{image.name} is over the {MAX_FILES:,} images that a form takes"
                    self.notes.append(message)
                else:
                    self._add_image(image, _caption_of(image, captions))
            if captions and not images:
                self._add_caption(captions[0])

    def _add_image(self, image: NewFile, caption: Path | None) -> None:
        same = self._same(image.path)
        if same is not None:
            text = same.with_suffix(".txt")
            if caption is None or (text.exists() and filecmp.cmp(text, caption, shallow=False)):
                self.notes.append(f"{image.name} is the same image as {same.name}")
            elif text.exists():
                message = "is the same image as {}, which keeps its caption"
                self.notes.append(f"{image.name} {message.format(same.name)}")
            else:
                shutil.copyfile(caption, text)
            return
        path = self._reserve(PurePosixPath(image.name))
        size = image.path.stat().st_size
        image.path.replace(path)
        self._images.append(path)
        self._sizes[size].append(path)
        self._stems.add(name_key(path.stem))
        if caption is not None:
            shutil.copyfile(caption, path.with_suffix(".txt"))

    def _add_caption(self, caption: NewFile) -> None:
        stem = self._stem_of(PurePosixPath(caption.name).stem)
        path = self._folder / f"{stem}.txt"
        if not path.exists():
            if self._captions >= MAX_FILES:
                self.notes.append(f"{caption.name} is over the {MAX_FILES:,} captions of a form")
                return
            self._captions += 1
        shutil.copyfile(caption.path, path)

    def _same(self, path: Path) -> Path | None:
        """Return the image of the same bytes, if the collection has it."""
        alike = self._sizes.get(path.stat().st_size, [])
        return next((other for other in alike if filecmp.cmp(path, other, shallow=False)), None)

    def _reserve(self, name: PurePosixPath) -> Path:
        """Create an empty file of a name that no other image has, and return it."""
        number = 1
        while True:
            stem = name.stem if number == 1 else f"{name.stem}-{number}"
            number += 1
            if name_key(stem) in self._stems:
                continue
            path = self._folder / f"{stem}{name.suffix}"
            try:
                os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
            except FileExistsError:  # another request has just added it
                continue
            return path

    def _stem_of(self, stem: str) -> str:
        """Return the stem of the image that a caption belongs to, in the image's own spelling."""
        key = name_key(stem)
        return next((path.stem for path in self._images if name_key(path.stem) == key), stem)


def _caption_of(image: NewFile, captions: Sequence[NewFile]) -> Path | None:
    """Return the caption of an image: names that differ by case only may have one each."""
    stem = PurePosixPath(image.name).stem
    exact = (it.path for it in captions if PurePosixPath(it.name).stem == stem)
    return next(exact, captions[0].path if captions else image.caption)


def _name_problem(name: str) -> str:
    """Return why a file cannot be added by its name; empty if it can."""
    suffix = PurePath(name).suffix.lower()
    if name != PurePath(name).name or name in ("", ".", "..") or not name.isprintable():
        return f"{name!r} is not a file name"
    if len(name.encode("utf-8", "surrogatepass")) > _MAX_NAME_BYTES:
        return f"the name {name[:20]}… has more than {_MAX_NAME_BYTES} bytes"
    if suffix in SUFFIXES or suffix == ".txt":
        return ""
    format = format_of_name(name)
    if format is not None:
        return f"{name} {format.refusal}; {format.remedy}"
    if suffix == ".jsonl":
        return f"{name} is read in an archive only; pack it with its images as .zip"
    return f"{name} has none of the types {READ_NAMES}, .txt, .zip"


def refusal(name: str) -> str:
    """Return why a file of this name is not added, on one line; empty if it is."""
    base = PurePosixPath(name).name
    return "" if system_part(name) or is_archive(base) else _name_problem(base)


def is_archive(name: str) -> bool:
    """Return whether a file is an archive, by its suffix."""
    return name.lower().endswith(ARCHIVES)


def _write_archive(packed: Path, files: Iterable[Path]) -> None:
    # Images do not compress further.
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_STORED) as archive:
        for path in files:
            # One date for all files: the same images make the same archive.
            info = zipfile.ZipInfo(path.name)
            with path.open("rb") as source, archive.open(info, "w", force_zip64=True) as target:
                shutil.copyfileobj(source, target, 2**20)


def _key(path: Path) -> str:
    try:
        about = path.stat()
    except FileNotFoundError:  # it has just been removed
        return ""
    return sha256(f"{path.name}\n{about.st_mtime_ns} {about.st_size}".encode()).hexdigest()[:32]


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:  # it has just been removed
        return 0


def _caption(image: Path) -> str | None:
    path = image.with_suffix(".txt")
    if not path.exists():
        return None
    text = read_caption(path, path.name)
    # The check reports a file that is no caption.
    return text.strip() if isinstance(text, str) else ""
