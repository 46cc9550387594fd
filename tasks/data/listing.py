"""Listings of a dataset: which file is an image, and which caption and mask belong to it.

A listing is made of a mapping from names to local files, by caption files here or by the rows of a
JSONL file (``jsonl``). It reads captions, but no image.
"""

import re
import unicodedata
from codecs import BOM_UTF8, BOM_UTF16_BE, BOM_UTF16_LE, BOM_UTF32_BE, BOM_UTF32_LE
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path, PurePosixPath

from tasks.data.contents import CaptionFiles, Contents, caption_name, rename_remedy
from tasks.data.formats import READ_NAMES
from tasks.data.opening import open_resolved
from tasks.dataset import MAX_CAPTION_BYTES, MAX_ITEMS
from tasks.errors import Problem
from tasks.escaping import shortened

MAX_PROBLEMS = 1000
"""A dataset with more problems is not checked to its end: they have one systematic cause."""
# Problems of one message that are listed; of more, the first ones are named.
MAX_EQUAL, _MAX_NAMED = 3, 5
# Marks of encodings. UTF-32's begin with UTF-16's.
_MARKS = {
    BOM_UTF8: "utf-8",
    BOM_UTF32_LE: "utf-32-le",
    BOM_UTF32_BE: "utf-32-be",
    BOM_UTF16_LE: "utf-16-le",
    BOM_UTF16_BE: "utf-16-be",
}
# Without tab, line ends and NEL. Those above 0x7f come of Windows-1252 that was read as Latin-1.
_CONTROL = re.compile(r"[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f]")
# Letters and a symbol that are blank: fillers of Hangul, and the empty cell of Braille.
_BLANK = frozenset("\u115f\u1160\u3164\uffa0\u2800")


class SourceError(Exception):
    """A dataset cannot be read at all; the message says why."""


def source_error(error: OSError, kind: str) -> SourceError:
    """Return the error of a ``file`` or ``folder`` that cannot be opened."""
    if isinstance(error, FileNotFoundError | IsADirectoryError | NotADirectoryError):
        return SourceError(f"there is no such {kind} on this worker")
    return SourceError(f"cannot be read: {error.strerror or error}")


@dataclass(frozen=True)
class Item:
    """One image with its caption.

    Attributes:
        path: The image's file.
        name: The image's name in messages.
        caption: The caption, stripped; empty if none is used.
        mask: The mask's file, if there is one and it is used.
        part: The index of the data loader's source.
    """

    path: Path
    name: str
    caption: str
    mask: Path | None = None
    part: int = 0


@dataclass
class Listing:
    """The images of a source, and the problems found.

    Attributes:
        location: The source, as messages name it.
        items: The images without a problem.
        problems: What ends the job.
        warnings: What does not.
        check_stop: Called for each image; an exception that it raises ends the listing.
    """

    location: str
    items: list[Item] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    warnings: list[Problem] = field(default_factory=list)
    check_stop: Callable[[], object] = field(default=lambda: None, repr=False, compare=False)

    def add(
        self, path: Path, name: str, caption: str | Problem | None, mask: Path | None = None
    ) -> None:
        """Add an image, or the problem of its caption.

        Args:
            path: The image's file.
            name: The image's name in messages.
            caption: The caption, or why it cannot be read; None if none is used.
            mask: The mask's file, if it is used.
        """
        self.check_stop()
        if caption is None:
            self.items.append(Item(path, name, "", mask))
        elif isinstance(caption, Problem):
            self.problems.append(caption)
        elif problem := _caption_problem(caption, name):
            self.problems.append(problem)
        else:
            self.items.append(Item(path, name, caption.strip(), mask))

    def check_count(self, count: int) -> None:
        """Add a problem if a source has no image or too many.

        Args:
            count: The number of images in the source, with and without problems.
        """
        if not count:
            self.problems.append(no_image(self.location))
        if count > MAX_ITEMS:
            message = f"has over {MAX_ITEMS:,} images, the maximum"
            self.problems.append(Problem(self.location, message))


def no_image(location: str) -> Problem:
    """Return the problem of a source without an image that is read."""
    return Problem(location, f"has no image ({READ_NAMES})")


def grouped(problems: Iterable[Problem]) -> list[Problem]:
    """Return problems in order, those of one message as one if they are more than a few.

    A dataset of 100,000 files may have one cause of problems in each.
    """
    first: dict[tuple[object, ...], list[tuple[int, Problem]]] = defaultdict(list)
    counts: Counter[tuple[object, ...]] = Counter()
    for number, problem in enumerate(problems):
        key: tuple[object, ...] = (problem.message, problem.retryable, problem.code)
        counts[key] += 1
        if counts[key] <= _MAX_NAMED:
            first[key].append((number, problem))
    kept: list[tuple[int, Problem]] = []
    for key, members in first.items():
        if counts[key] <= MAX_EQUAL:
            kept += members
        else:
            number, problem = members[0]
            kept.append((number, _together([it for _, it in members], counts[key], problem)))
    return [problem for _, problem in sorted(kept, key=lambda pair: pair[0])]


def _together(members: list[Problem], count: int, problem: Problem) -> Problem:
    names = ", ".join(shortened(member.location, 40) for member in members)
    more = ", ..." if count > len(members) else ""
    remedies = {member.remedy for member in members}
    remedy = problem.remedy if len(remedies) == 1 else f"for the first one, {problem.remedy}"
    return replace(problem, location=f"each of {count:,} ({names}{more})", remedy=remedy)


def pair_captions(
    listing: Listing,
    files: Mapping[str, Path],
    others: Iterable[str] = (),
    *,
    captions: bool,
    reads_subfolders: bool = True,
) -> Listing:
    """Add the images among files to a listing, each with the caption file of its name.

    Args:
        listing: Receives the images, and findings about all that is not used.
        files: The local files by name.
        others: The names of other files of the dataset; see ``Contents``.
        captions: Whether captions are used.
        reads_subfolders: Whether files in subfolders are used.
    """
    contents = Contents((*files, *others), reads_subfolders=reads_subfolders)
    if contents.images:
        listing.check_count(len(contents.images))
    else:
        # Otherwise, why images could not be unpacked or downloaded is reported.
        empty = contents.only_in_subfolders(listing.location)
        if empty or not listing.problems:
            listing.problems.append(empty or no_image(listing.location))
    images = [name for name in contents.images if name in files][:MAX_ITEMS]
    if captions:
        named = _add_images(listing, files, images, contents)
    else:
        named = set()
        listing.items = [Item(files[name], name, "") for name in images]
        unused = "is a caption; this job uses none"
        listing.warnings += grouped(Problem(name, unused) for name in contents.captions)
    listing.warnings += grouped(contents.findings(listing.location, named))
    return listing


def _add_images(
    listing: Listing, files: Mapping[str, Path], images: list[str], contents: Contents
) -> set[str]:
    """Add images with their captions, and return the files that findings name."""
    caption_files = CaptionFiles(contents.captions)
    caption_of = {image: caption_files.of(image) for image in images}
    images_of: dict[str | None, list[str]] = defaultdict(list)
    for image, caption in caption_of.items():
        images_of[caption].append(image)
    orphans = [name for name in contents.captions if name not in images_of]
    sidecars = contents.sidecars(orphans)
    # The one that is offered in place of a missing caption.
    offered = {image: name for name, image in sidecars.items() if caption_of.get(image) is None}
    for image, caption in caption_of.items():
        if caption is None:
            listing.problems.append(_missing_caption(image, offered.get(image)))
        else:
            listing.add(files[image], image, read_caption(files[caption], caption))
    images_of.pop(None, None)
    unread = sorted(sidecars.keys() - set(offered.values()))
    unused = (contents.orphan(name) for name in orphans if name not in sidecars)
    message = "is not read: its image has another caption"
    beside = (Problem(name, message) for name in unread)
    listing.warnings += grouped(chain(_shared_names(images_of.values()), unused, beside))
    return {*sidecars}


def _missing_caption(image: str, sidecar: str | None) -> Problem:
    if sidecar is not None:
        remedy = rename_remedy(sidecar, image)
        return Problem(image, "has no .txt caption", remedy, code="missing")
    name = PurePosixPath(caption_name(image)).name
    return Problem(image, "has no caption", f"write it into {name}", code="missing")


def _shared_names(groups: Iterable[list[str]]) -> Iterator[Problem]:
    """Yield the groups of images, as a JPEG and a PNG, that have one caption."""
    for images in groups:
        if len(images) > 1:
            message = "have one name and one caption, which each is trained with"
            yield Problem(" and ".join(images), message, "keep one, or rename it with its caption")


def read_caption(path: Path, name: str) -> str | Problem:
    """Return the text of a caption file, or why it is no caption.

    Args:
        path: The file, with links resolved.
        name: Its name in messages.
    """
    try:
        with open_resolved(path) as file:
            data = file.read(MAX_CAPTION_BYTES + 1)
        if len(data) > MAX_CAPTION_BYTES:
            return Problem(name, f"is longer than {MAX_CAPTION_BYTES} bytes; captions are short")
        mark = next((mark for mark in _MARKS if data.startswith(mark)), b"")
        text = data.removeprefix(mark).decode(_MARKS.get(mark, "utf-8"))
    except UnicodeDecodeError as error:
        where = f"byte 0x{error.object[error.start]:02x} at position {error.start}"
        return Problem(name, f"cannot be read as UTF-8 text: {where}", "save it as UTF-8")
    except OSError as error:
        return Problem(name, f"cannot be read: {error.strerror or error}")
    # Of an empty caption, the image is named.
    return (text.strip() and _caption_problem(text, name)) or text


def is_unicode(text: str) -> bool:
    """Return whether a text can be written as UTF-8, which JSON and the store need."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _caption_problem(caption: str, name: str) -> Problem | None:
    """Return why a text is no caption."""
    if not caption.strip():
        return Problem(name, "has an empty caption", "describe the image", code="missing")
    if len(caption.encode()) > MAX_CAPTION_BYTES:
        return Problem(name, f"has a caption of over {MAX_CAPTION_BYTES} bytes")
    if "\0" in caption:
        message = "has a NUL character in its caption, as UTF-16 text without a mark has"
        return Problem(name, message, "save it as UTF-8")
    if control := _CONTROL.search(caption):
        message = f"has the control character U+{ord(control[0]):04X} in its caption"
        return Problem(name, message, "remove it, or save the caption as UTF-8")
    if not any(map(_is_visible, caption)):
        return Problem(name, "has a caption of invisible characters only", "describe the image")
    return None


def _is_visible(character: str) -> bool:
    return unicodedata.category(character)[0] in "LNPS" and character not in _BLANK
