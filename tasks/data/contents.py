"""Contents of a dataset: what each file is, by its name, and findings about what is not used.

Folders, archives, buckets and the folders of JSONL files all ask here, so that the same files have
the same findings wherever they are.
"""

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from enum import Enum, auto
from pathlib import PurePosixPath
from posixpath import splitext

from tasks.data.formats import READ, format_of_name
from tasks.errors import Problem
from tasks.escaping import listed

# Of operating systems and sync clients; whatever is hidden is a system file, too.
_SYSTEM_NAMES = frozenset(
    {
        *("__macosx", "icon\r", "thumbs.db", "ehthumbs.db", "desktop.ini", "@eadir", "#recycle"),
        *("$recycle.bin", "system volume information", "lost+found", "__pycache__"),
    }
)
_ARCHIVES = frozenset({".zip", ".tar", ".gz", ".tgz", ".7z", ".rar", ".bz2", ".xz", ".zst"})
_TABLES = frozenset({".jsonl", ".csv", ".tsv", ".parquet"})
# What other tools write beside an image. The text of the second kind is in fields.
_CAPTIONS = frozenset(
    {".txt", ".caption", ".captions", ".cap", ".tag", ".tags", ".text", ".prompt", ".md", ".bak"}
)
_DOCUMENTS = frozenset({".json", ".csv", ".xml", ".yaml", ".yml", ".rtf", ".doc", ".docx", ".odt"})
_TEXTS = _CAPTIONS | _DOCUMENTS
# What OneTrainer adds, after a hyphen, to an image's name for its mask or another input.
_MASKS = frozenset({"masklabel", "condlabel"})
# Repeats, and what the images show: the folders of kohya's trainers.
_REPEATS = re.compile(r"(\d{1,3})_")
_MAX_FOLDERS = 20


class Kind(Enum):
    """What a file of a dataset is."""

    IMAGE = auto()
    CAPTION = auto()
    MASK = auto()
    TABLE = auto()
    """Rows of captions or metadata."""
    OTHER_FORMAT = auto()
    """An image or video of a format that is not read."""
    ARCHIVE = auto()
    OTHER = auto()


_NOT_USED = {
    Kind.MASK: (
        "is a mask by its name, as of OneTrainer; it is not used",
        "name it in the mask column of a JSONL file",
    ),
    Kind.TABLE: (
        "is not read by this type of dataset",
        "to use its captions, save them as JSONL and name that file as the dataset",
    ),
    Kind.ARCHIVE: ("is an archive, which is not unpacked", "unpack it, or leave it out"),
    Kind.OTHER: ("is neither an image nor a caption; it is not used", ""),
}


def kind_of(name: str) -> Kind:
    """Return what a file is, by its suffix."""
    suffix = splitext(name)[1].lower()
    if suffix == ".txt":
        return Kind.CAPTION
    format = format_of_name(name)
    if format is not None:
        return Kind.IMAGE if format in READ else Kind.OTHER_FORMAT
    if suffix in _ARCHIVES:
        return Kind.ARCHIVE
    return Kind.TABLE if suffix in _TABLES else Kind.OTHER


def system_part(path: str) -> str:
    """Return the beginning of a path that names a system file or folder; empty without one."""
    parts = path.split("/")
    for number, part in enumerate(parts, start=1):
        is_hidden = part.startswith(".") and part not in (".", "..")
        if is_hidden or part.lower() in _SYSTEM_NAMES:
            return "/".join(parts[:number])
    return ""


def name_key(name: str) -> str:
    """Return what equal names have in common: no case, and one Unicode form (macOS has another)."""
    if name.isascii():
        return name.lower()
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


class Contents:
    """The files of a dataset by their kinds.

    Args:
        names: The paths of all files; of a folder that was not listed, its path and a slash.
        reads_subfolders: Whether files in subfolders are used.

    Attributes:
        images: The images that can be used, sorted.
        captions: The caption files that can be used, sorted.
    """

    def __init__(self, names: Iterable[str], *, reads_subfolders: bool = True) -> None:
        self._kinds: dict[Kind, list[str]] = defaultdict(list)
        self._system: dict[str, None] = {}
        self._closed: list[str] = []
        # Numbers of images and of other files.
        self._folders: dict[str, Counter[bool]] = defaultdict(Counter)
        self._reads_subfolders = reads_subfolders
        for name in sorted(names):
            folder, _, base = name.rpartition("/")
            kind = kind_of(name)
            if system := system_part(name.rstrip("/")):
                self._system[system] = None
                continue
            if not base:
                self._closed.append(folder)
                continue
            if folder:
                self._folders[folder][kind in (Kind.IMAGE, Kind.OTHER_FORMAT)] += 1
            if reads_subfolders or not folder:
                self._kinds[kind].append(name)
        images = self._kinds.pop(Kind.IMAGE, [])
        stems = {name_key(_stem(name)) for name in images}
        for name in images:
            image, _, ending = name_key(_stem(name)).rpartition("-")
            is_mask = ending in _MASKS and image in stems
            self._kinds[Kind.MASK if is_mask else Kind.IMAGE].append(name)
        self.images = self._kinds.pop(Kind.IMAGE, [])
        self.captions = self._kinds.pop(Kind.CAPTION, [])
        self._unread = {name_key(_stem(name)) for name in self._kinds[Kind.OTHER_FORMAT]}

    def orphan(self, caption: str) -> Problem:
        """Return the finding about a caption file without an image of its name that is read."""
        image = "no image"
        if name_key(_stem(caption)) in self._unread:
            image = "an image that is not read"
        return Problem(caption, f"belongs to {image}; it is not used")

    def sidecars(self, captions: Iterable[str]) -> dict[str, str]:
        """Return the files that look like captions and are not read, each with its image.

        Args:
            captions: The caption files without an image of their name.
        """
        stems = {name_key(_stem(name)): name for name in self.images}
        stems |= {name_key(name): name for name in self.images}
        found = {}
        for name in (*captions, *self._kinds[Kind.OTHER], *self._kinds[Kind.TABLE]):
            stem = name
            while splitext(stem)[1].lower() in _TEXTS:
                stem = _stem(stem)
                if image := stems.get(name_key(stem)):
                    found[name] = image
                    break
        return found

    def findings(self, location: str, named: Iterable[str] = ()) -> Iterator[Problem]:
        """Yield what is not used, file by file or, of subfolders and system files, together.

        Args:
            location: The dataset.
            named: Files that are used, or in other findings.
        """
        skipped = set(named)
        for name in self._kinds[Kind.OTHER_FORMAT]:
            if name not in skipped and (format := format_of_name(name)):
                yield Problem(name, format.refusal, format.remedy)
        yield from self._folder_findings(location)
        for kind, (message, remedy) in _NOT_USED.items():
            for name in self._kinds[kind]:
                if name not in skipped:
                    yield Problem(name, message, remedy)
        if self._system:
            count = len(self._system)
            files = "file or folder is" if count == 1 else "files and folders are"
            message = f"{count:,} system {files} ignored: {listed(list(self._system))}"
            yield Problem(location, message)

    def only_in_subfolders(self, location: str) -> Problem | None:
        """Return the problem that only subfolders, which are not read, have images."""
        folders = {name: it[True] for name, it in self._folders.items() if it[True]}
        if not folders or self._reads_subfolders:
            return None
        names = listed([f"{name} ({count:,})" for name, count in folders.items()])
        message = f"has no image at its top, and its subfolders are not read: {names}"
        return Problem(location, message, "name the one with the images as dataset_dir")

    def _folder_findings(self, location: str) -> Iterator[Problem]:
        folders = self._folders
        if self._reads_subfolders:
            folders = {name: it for name, it in folders.items() if it[True] and _repeats(name)}
        for name in list(folders)[:_MAX_FOLDERS]:
            yield self._folder_finding(name)
        rest = list(folders)[_MAX_FOLDERS:]
        if rest:
            count = sum(folders[name].total() for name in rest)
            fate = "used without repeats" if self._reads_subfolders else "not read"
            yield Problem(
                location, f"{len(rest):,} more subfolders, of {count:,} files, are {fate}"
            )
        for name in self._closed:
            yield Problem(name, "is a link to a folder, or cannot be opened; it is not read")

    def _folder_finding(self, name: str) -> Problem:
        images, repeats = self._folders[name][True], _repeats(name)
        count = self._folders[name].total()
        remedy = f"multiply the job's epochs or steps by {repeats} instead" if repeats else ""
        if self._reads_subfolders:
            files = f"{images:,} image{'s' if images > 1 else ''}"
            message = f"the {repeats} repeats of its name are not applied to its {files}"
            return Problem(name, message, remedy)
        files = f"{count:,} file{'s' if count > 1 else ''}"
        message = f"is a subfolder of {files}, {images:,} of them images, and is not read"
        move = "move them up, or name it as dataset_dir"
        if repeats:
            message += f"; nor are the {repeats} repeats of its name applied"
            move += f"; {remedy}"
        return Problem(name, message, move)


class CaptionFiles:
    """The caption files of images, found by name.

    A name of the same spelling has precedence over one that differs in case or Unicode form.

    Args:
        names: The names of the caption files, sorted.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self._names = dict.fromkeys(names)
        self._by_key: dict[str, list[str]] = defaultdict(list)
        for name in self._names:
            self._by_key[name_key(name)].append(name)

    def of(self, image: str) -> str | None:
        """Return the caption file of an image; None without one."""
        name = caption_name(image)
        if name in self._names:
            return name
        return next(iter(self._by_key.get(name_key(name), [])), None)


def caption_name(image: str) -> str:
    """Return the name of an image's caption file."""
    return f"{_stem(image)}.txt"


def rename_remedy(sidecar: str, image: str) -> str:
    """Return what to do with a caption of another suffix."""
    old, new = PurePosixPath(sidecar), PurePosixPath(caption_name(image)).name
    if old.suffix.lower() in _DOCUMENTS:
        return f"write the text of {old.name} into {new}"
    return f"rename {old.name} to {new}"


def _stem(name: str) -> str:
    return splitext(name)[0]


def _repeats(folder: str) -> int:
    """Return the repeats that a folder's name gives to kohya's trainers; 0 without, or for one."""
    found = _REPEATS.match(PurePosixPath(folder).name)
    repeats = int(found[1]) if found else 0
    return repeats if repeats > 1 else 0
