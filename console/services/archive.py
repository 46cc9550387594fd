"""One zip archive of many files that come piece by piece, under names that harm nobody."""

import re
import tempfile
import zipfile
from collections.abc import AsyncIterable, AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from anyio import to_thread

from console.errors import TooLargeError
from tasks.data.images import SUFFIXES
from tasks.errors import InvalidJobError, Problem

MOST_FILES = 10_000
_CAPTION = ".txt"
_ODD = re.compile(r"[^\w.-]+")
_LONGEST_STEM = 80


@dataclass(frozen=True)
class NewFile:
    """A file that somebody sends.

    Attributes:
        name: As it is called there.
        pieces: Its bytes.
    """

    name: str
    pieces: AsyncIterable[bytes]


@asynccontextmanager
async def write_archive(
    folder: Path, files: Iterable[NewFile], most_bytes: int
) -> AsyncIterator[Path]:
    """A zip archive of images and captions, removed at the end.

    Args:
        folder: Where it is written.
        files: What goes into it.
        most_bytes: The most that all of them may take.

    Raises:
        InvalidJobError: Some are neither images nor captions, or two have one name.
        TooLargeError: They take more.
    """
    listed = list(files)
    names = _names(listed)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        path = Path(scratch) / "images.zip"
        left = most_bytes
        # Images hardly shrink.
        with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
            for file, name in zip(listed, names, strict=True):
                with archive.open(name, "w", force_zip64=True) as member:
                    async for piece in file.pieces:
                        left -= len(piece)
                        if left < 0:
                            raise TooLargeError(f"the files take over {most_bytes:,} bytes")
                        await to_thread.run_sync(member.write, piece)
        yield path


def _names(files: list[NewFile]) -> list[str]:
    """A safe name for each file; an image and its caption keep the same one."""
    stems: dict[str, str] = {}
    problems, names = [], []
    for file in files:
        last = PurePosixPath(file.name.replace("\\", "/"))
        suffix = last.suffix.lower()
        if suffix not in (*SUFFIXES, _CAPTION):
            kinds = ", ".join([*sorted(SUFFIXES), _CAPTION])
            problems.append(Problem(file.name[:100], f"is neither image nor caption ({kinds})"))
            continue
        stem = stems.setdefault(last.stem, _safe(last.stem, len(stems)))
        name = f"{stem}{suffix}"
        if name in names:
            problems.append(Problem(file.name[:100], "is there twice"))
        names.append(name)
    if len(files) > MOST_FILES:
        problems.append(Problem("", f"are {len(files):,} files; the most is {MOST_FILES:,}"))
    if not files:
        problems.append(Problem("", "there is no file"))
    if problems:
        raise InvalidJobError(problems)
    return names


def _safe(stem: str, number: int) -> str:
    """A stem without what means something to a file system, told apart by a number."""
    plain = _ODD.sub("_", stem).strip("._")[:_LONGEST_STEM]
    return f"{number:05d}-{plain}" if plain else f"{number:05d}"
