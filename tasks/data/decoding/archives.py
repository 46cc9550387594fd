"""Unpacks archives of training images from untrusted sources.

A member's name never becomes a file's name, so that no name can lead out of the folder; names are
checked only to report what is wrong with them. Sizes are counted while unpacking, whatever the
headers say.
"""

import collections
import gzip
import io
import re
import stat
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from tasks.data.contents import Kind, kind_of, system_part
from tasks.data.decoding.archive_members import (
    CHUNK_BYTES,
    DAMAGE_ERRORS,
    MIB,
    DamagedMemberError,
    Member,
    UnpackedBytes,
    UnpackingStoppedError,
    damage_message,
    read_up_to,
)
from tasks.data.decoding.tar_reader import BLOCK_BYTES, TarReader, is_tar
from tasks.data.opening import open_resolved
from tasks.errors import Problem

MAX_ENTRIES = 1_000_000
MAX_PROBLEMS = 100
MAX_NAME_BYTES = 1024
_CONTROL_CHARACTER = re.compile(r"[\x00-\x1f\x7f-\x9f]")
# The icon of a folder.
_MAC_ICON = "Icon\r"
# A byte that is not UTF-8.
_SURROGATE = re.compile(r"[\ud800-\udfff]")
MAX_MEMBER_BYTES = 512 * MIB
# zipfile reads a zip's whole directory, and makes an object of each entry, before it returns.
MAX_DIRECTORY_BYTES = 256 * MIB


@dataclass
class Unpacked:
    """The contents of an archive.

    Attributes:
        files: The file of each unpacked member by the member's name, sorted.
        problems: Everything that is wrong with the archive.
        others: The names of members that were skipped: neither images nor captions.
    """

    files: dict[str, Path]
    problems: list[Problem]
    others: list[str]


def unpack(archive: Path, folder: Path, *, max_bytes: int) -> Unpacked:
    """Unpack the images, captions and JSONL files of a zip, tar or tar.gz archive.

    Members with a problem are skipped and the others unpacked, so that all problems are reported
    together. If a problem makes it useless or dangerous to continue, no file remains.

    Args:
        archive: The archive.
        folder: The folder for the files ``00000001.png`` and so on; empty or missing.
        max_bytes: The maximum that is unpacked; for a tar, with headers and unused members.

    Raises:
        OSError: The archive cannot be opened, or the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    unpacking = _Unpacking(archive.name, folder)
    try:
        with open_resolved(archive) as file:
            size = file.seek(0, io.SEEK_END)
            file.seek(0)
            unpacking.run(file, UnpackedBytes(size, max_bytes))
    except UnpackingStoppedError as error:
        unpacking.remove()
        return unpacking.result(str(error))
    return unpacking.result()


class _Unpacking:
    """Unpacks one archive into a folder.

    Args:
        archive_name: The archive's name in messages.
        folder: The folder for the files.
    """

    def __init__(self, archive_name: str, folder: Path) -> None:
        self._archive_name = archive_name
        self._folder = folder
        self._entries = 0
        self._names: set[str] = set()
        self._files: dict[str, Path] = {}
        self._problems: list[Problem] = []
        self._more_problems = 0
        self._others: list[str] = []

    def run(self, file: io.BufferedReader, unpacked: UnpackedBytes) -> None:
        """Unpack a file, whose format is detected by its first bytes, not its suffix."""
        start = file.read(BLOCK_BYTES)
        file.seek(0)
        if start.startswith((b"PK\x03\x04", b"PK\x05\x06")):
            self._unpack_zip(file, unpacked)
        elif start.startswith(b"\x1f\x8b"):
            with gzip.GzipFile(fileobj=file) as inner:
                if not is_tar(read_up_to(inner, BLOCK_BYTES)):
                    raise UnpackingStoppedError(
                        "is gzip but not a tar; pack the images as tar.gz or zip"
                    )
                inner.seek(0)
                self._unpack_tar(TarReader(inner, unpacked))
        elif is_tar(start):
            self._unpack_tar(TarReader(file, unpacked))
        else:
            raise UnpackingStoppedError(
                "is not a zip, tar or tar.gz archive; pack the images as one of these"
            )

    def remove(self) -> None:
        """Remove all unpacked files."""
        for path in self._files.values():
            path.unlink(missing_ok=True)
        self._files.clear()

    def result(self, fatal: str = "") -> Unpacked:
        """Return the files and problems.

        Args:
            fatal: The problem that stopped the unpacking, if one did.
        """
        count = self._more_problems
        more = f"{count:,} more members have problems" if count else ""
        whole = (Problem(self._archive_name, message) for message in (more, fatal) if message)
        problems = [*self._problems, *whole]
        return Unpacked(dict(sorted(self._files.items())), problems, self._others)

    def _unpack_zip(self, file: io.BufferedReader, unpacked: UnpackedBytes) -> None:
        _check_directory(file)
        try:
            archive = zipfile.ZipFile(file)
            file_bytes = file.seek(0, io.SEEK_END)
        except UnicodeDecodeError as error:
            raise UnpackingStoppedError("has a name that is not UTF-8; rename the file") from error
        except DAMAGE_ERRORS as error:
            raise UnpackingStoppedError(damage_message(error)) from error
        with archive:
            # Entries may share their bytes: a million members of the same few bytes could take long
            # and yet unpack to nothing, which the count of unpacked bytes would not limit.
            if sum(info.compress_size for info in archive.infolist()) > file_bytes:
                raise UnpackingStoppedError(
                    "has members that share their bytes, like a decompression bomb; pack it again"
                )
            for info in archive.infolist():
                member = _zip_member(info)
                name = self._accept(member)
                if name is not None:
                    self._write(name, _zip_data(archive, info, unpacked))

    def _unpack_tar(self, tar: TarReader) -> None:
        while (member := tar.next()) is not None:
            name = self._accept(member)
            data = tar.data(member)
            if name is not None:
                self._write(name, data)
            collections.deque(data, maxlen=0)  # skip what was not written
        tar.finish()

    def _accept(self, member: Member) -> str | None:
        """Return a member's name in the result; None if the member is skipped."""
        self._entries += 1
        if self._entries > MAX_ENTRIES:
            raise UnpackingStoppedError(_too_many_entries())
        path = PurePosixPath(member.name)  # without "." and double slashes
        name = str(path)
        problem = _name_problem(member.name) or member.problem
        if problem and path.name != _MAC_ICON:
            self._add_problem(member.name, problem)
            return None
        if member.is_folder:
            return None
        is_read = kind_of(name) in (Kind.IMAGE, Kind.CAPTION) or path.suffix.lower() == ".jsonl"
        if system_part(name) or not is_read:
            self._others.append(name)
            return None
        problem = self._file_problem(name, member.size)
        if problem:
            self._add_problem(member.name, problem)
            return None
        self._names.add(name)
        return name

    def _file_problem(self, name: str, size: int) -> str:
        if name in self._names:
            return "is in the archive twice; remove one of them"
        if size > MAX_MEMBER_BYTES:
            return f"is larger than {MAX_MEMBER_BYTES // MIB} MiB, the maximum for one file"
        return ""

    def _write(self, name: str, data: Iterator[bytes]) -> None:
        suffix = PurePosixPath(name).suffix.lower()
        path = self._folder / f"{len(self._files) + 1:08d}{suffix}"
        # "x": overwrite no existing file, and follow no link.
        with path.open("xb") as file:
            self._files[name] = path
            try:
                for chunk in data:
                    file.write(chunk)
                return
            except DamagedMemberError as error:
                self._add_problem(name, str(error))
        path.unlink()
        del self._files[name]

    def _add_problem(self, name: str, problem: str) -> None:
        if len(self._problems) < MAX_PROBLEMS:
            self._problems.append(Problem(name or self._archive_name, problem))
        else:
            self._more_problems += 1


def _too_many_entries() -> str:
    return f"has over {MAX_ENTRIES:,} entries; split it into several datasets"


def _name_problem(name: str) -> str:
    if len(name.encode("utf-8", "surrogateescape")) > MAX_NAME_BYTES:
        return f"has a name of over {MAX_NAME_BYTES} bytes; give it a shorter one"
    if _CONTROL_CHARACTER.search(name):
        return "has a control character in its name; rename it"
    if _SURROGATE.search(name):
        return "has a name that is not UTF-8; rename it"
    if "\\" in name:
        return "has a backslash in its name; rename it, or pack it with '/' between folders"
    path = PurePosixPath(name)
    if path.is_absolute() or re.match("[A-Za-z]:", name):
        return "has an absolute path; pack it with a path from the archive's top"
    if ".." in path.parts:
        return "has a '..' in its path; pack it with a path from the archive's top"
    return "" if name else "has no name; pack it again"


def _check_directory(file: io.BufferedReader) -> None:
    """Refuse a zip whose directory is too large, before zipfile reads it.

    Raises:
        UnpackingStoppedError: The directory is too large or damaged.
    """
    try:
        # Private, and there is no public way: ``ZipFile`` reads the directory at once, and our own
        # search could find another directory than the one that ``ZipFile`` then reads.
        end = zipfile._EndRecData(file)  # type: ignore[attr-defined]
    except DAMAGE_ERRORS as error:
        raise UnpackingStoppedError(damage_message(error)) from error
    if end is None:
        raise UnpackingStoppedError(damage_message(EOFError("its directory is missing")))
    # The fields of the "end of central directory" record, the comment, and the record's position.
    # A 64-bit record has another 76 bytes between the directory and itself.
    size, location = end[5], end[9]
    if size > MAX_DIRECTORY_BYTES:
        raise UnpackingStoppedError(f"has a directory of over {MAX_DIRECTORY_BYTES // MIB} MiB")
    file.seek(max(0, location - size - 76))
    # Every entry begins with this, so their count is a maximum, whatever the record says.
    if file.read(size + 76).count(b"PK\x01\x02") > MAX_ENTRIES:
        raise UnpackingStoppedError(_too_many_entries())


def _zip_member(info: zipfile.ZipInfo) -> Member:
    name = info.orig_filename  # zipfile truncates ``filename`` at a NUL
    if not info.flag_bits & 0x800:
        # cp437 by the standard, but macOS writes UTF-8 without marking it.
        try:
            name = name.encode("cp437").decode("utf-8")
        except UnicodeError:
            name = info.orig_filename
    kind = stat.S_IFMT(info.external_attr >> 16)
    problem = ""
    if kind == stat.S_IFLNK:
        problem = "is a link; pack the file itself"
    elif kind in (stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO, stat.S_IFSOCK):
        problem = "is a device or pipe, not a file; remove it"
    elif info.flag_bits & 0x41:
        problem = "is encrypted; pack it without a password"
    elif info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        # zipfile can unpack these two in pieces.
        problem = "is not compressed by 'deflate'; pack it with that, or without compression"
    is_folder = name.endswith("/") or kind == stat.S_IFDIR
    return Member(name, info.file_size, is_folder, problem)


def _zip_data(
    archive: zipfile.ZipFile, info: zipfile.ZipInfo, unpacked: UnpackedBytes
) -> Iterator[bytes]:
    left = info.file_size
    try:
        with archive.open(info) as file:
            while chunk := file.read(CHUNK_BYTES):
                unpacked.add(len(chunk))
                left -= len(chunk)
                yield chunk
    except DAMAGE_ERRORS as error:
        raise DamagedMemberError(damage_message(error)) from error
    if left:
        raise DamagedMemberError(damage_message(EOFError()))
