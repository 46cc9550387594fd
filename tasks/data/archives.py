"""Unpacks archives of training images that nobody vouches for.

No member's name ever becomes a file's name, so no name can lead out of the folder; names are
checked all the same, to tell what is wrong with them. Sizes are those really met, not those that
headers claim.
"""

import collections
import gzip
import io
import re
import stat
import struct
import tarfile
import unicodedata
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from tasks.data.images import SUFFIXES
from tasks.errors import Problem

KEPT_SUFFIXES = SUFFIXES | {".txt", ".jsonl"}
ARCHIVE_SUFFIXES = frozenset(
    {".zip", ".tar", ".gz", ".tgz", ".7z", ".rar", ".bz2", ".xz", ".zst"},
)
MAX_ENTRIES = 1_000_000
MAX_PROBLEMS = 100
MAX_NAME_BYTES = 1024
_MIB = 2**20
MAX_MEMBER_BYTES = 512 * _MIB
# zipfile reads the whole directory, and makes an object of each entry, before it tells anything.
MAX_DIRECTORY_BYTES = 256 * _MIB
# What may precede one member of a tar: long names and attributes, which are some kilobytes.
MAX_HEADER_BYTES = _MIB
# Images hardly shrink; captions do by some 10 times. Small archives may hold what they like.
MAX_GROWTH = 200
SMALL_BYTES = 1024 * _MIB

_CHUNK_BYTES = 256 * 1024
_BLOCK = tarfile.BLOCKSIZE
# All that zipfile and gzip raise for bytes that are not what they should be; RuntimeError for
# features they lack, OverflowError and OSError for offsets outside the file.
_DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    OSError,
    OverflowError,
    RuntimeError,
    ValueError,
)


@dataclass
class Unpacked:
    """What was found in an archive.

    Attributes:
        files: The file of each member that was unpacked, by the member's name, in their order.
        faults: All that is wrong with the archive.
        unused: How many members are neither images nor captions, and were left out.
    """

    files: dict[str, Path]
    problems: list[Problem]
    unused: int


def unpack(archive: Path, folder: Path, *, max_bytes: int) -> Unpacked:
    """Unpack the images, captions and JSONL files of a zip, tar or tar.gz archive.

    Members with a fault are left out and the others still unpacked, to tell all faults at once.
    Where a fault makes it pointless or dangerous to go on, no file remains.

    Args:
        archive: The archive.
        folder: Where to unpack it, as ``00000001.png`` and so on; an empty folder, or none yet.
        max_bytes: The most that may be unpacked; of a tar, with headers and unused members.

    Raises:
        OSError: The archive cannot be opened, or the folder not be written to.
    """
    folder.mkdir(parents=True, exist_ok=True)
    unpacking = _Unpacking(archive.name, folder)
    try:
        with archive.open("rb") as file:
            size = file.seek(0, io.SEEK_END)
            file.seek(0)
            unpacking.run(file, _Meter(size, max_bytes))
    except _StopError as error:
        unpacking.remove()
        return unpacking.outcome(str(error))
    return unpacking.outcome()


class _StopError(Exception):
    """The archive must not be unpacked any further; says why."""


class _DamagedError(Exception):
    """One member cannot be read; says why."""


class _Meter:
    """Counts unpacked bytes, and stops at the most that there may be."""

    def __init__(self, archive_bytes: int, max_bytes: int) -> None:
        self._left = min(max_bytes, max(SMALL_BYTES, MAX_GROWTH * archive_bytes))
        if self._left == max_bytes:
            self._problem = f"unpacks to over {max_bytes:,} bytes, the most that is allowed here"
        else:
            self._problem = (
                f"unpacks to over {MAX_GROWTH} times its size, as no images do; "
                "it is taken for a decompression bomb"
            )

    def add(self, count: int) -> None:
        self._left -= count
        if self._left < 0:
            raise _StopError(self._problem)


@dataclass(frozen=True)
class _Member:
    """An entry of an archive, as its header tells.

    Attributes:
        name: Its name as it stands there.
        size: How many bytes it is said to have; no more are read.
        is_folder: Whether it is a folder.
        problem: Why it cannot be unpacked whatever its name; empty where it can.
    """

    name: str
    size: int
    is_folder: bool
    message: str


class _Unpacking:
    """One archive's way into a folder."""

    def __init__(self, where: str, folder: Path) -> None:
        self._where = _shown(where)
        self._folder = folder
        self._entries = 0
        self._names: set[str] = set()
        self._files: dict[str, Path] = {}
        self._problems: list[Problem] = []
        self._more_faults = 0
        self._unused = 0

    def run(self, file: io.BufferedReader, meter: _Meter) -> None:
        """Unpack a file of whichever kind its first bytes tell: suffixes tell too little."""
        start = file.read(_BLOCK)
        file.seek(0)
        if start.startswith((b"PK\x03\x04", b"PK\x05\x06")):
            self._unpack_zip(file, meter)
        elif start.startswith(b"\x1f\x8b"):
            with gzip.GzipFile(fileobj=file) as inner:
                if not _is_tar(_read(inner, _BLOCK)):
                    raise _StopError("is gzip but holds no tar; pack the images as tar.gz or zip")
                inner.seek(0)
                self._unpack_tar(_Tar(inner, meter))
        elif _is_tar(start):
            self._unpack_tar(_Tar(file, meter))
        else:
            raise _StopError("is no zip, tar or tar.gz archive; pack the images as one of them")

    def remove(self) -> None:
        """Remove what has been unpacked."""
        for path in self._files.values():
            path.unlink(missing_ok=True)
        self._files.clear()

    def outcome(self, last: str = "") -> Unpacked:
        """All that was found, with the problem that ended the search, if one did."""
        more = f"{self._more_faults:,} more members are at fault" if self._more_faults else ""
        problems = [*self._problems, *(Problem(self._where, text) for text in (more, last) if text)]
        return Unpacked(dict(sorted(self._files.items())), problems, self._unused)

    def _unpack_zip(self, file: io.BufferedReader, meter: _Meter) -> None:
        _check_directory(file)
        try:
            archive = zipfile.ZipFile(file)
            file_bytes = file.seek(0, io.SEEK_END)
        except UnicodeDecodeError as error:
            raise _StopError("holds a name that is not UTF-8; rename its file") from error
        except _DAMAGE as error:
            raise _StopError(_damage(error)) from error
        with archive:
            # A few bytes may be told to be the data of each of a million members, and be such as
            # take time yet unpack to nothing, which the meter would not see.
            if sum(info.compress_size for info in archive.infolist()) > file_bytes:
                raise _StopError(
                    "has members that share their bytes, as a decompression bomb has; pack it again"
                )
            for info in archive.infolist():
                member = _zip_member(info)
                name = self._wanted(member)
                if name is not None:
                    self._write(name, _zip_data(archive, info, meter))

    def _unpack_tar(self, tar: "_Tar") -> None:
        while (member := tar.next()) is not None:
            name = self._wanted(member)
            data = tar.data(member)
            if name is not None:
                self._write(name, data)
            collections.deque(data, maxlen=0)  # what is not written is still in the way
        tar.finish()

    def _wanted(self, member: _Member) -> str | None:
        """A member's name in the outcome, if the member is to be unpacked."""
        self._entries += 1
        if self._entries > MAX_ENTRIES:
            raise _StopError(_too_many_entries())
        problem = _name_problem(member.name) or member.message
        if problem:
            self._add_fault(member.name, problem)
            return None
        if member.is_folder:
            return None
        path = PurePosixPath(member.name)  # without "." and doubled slashes
        name, suffix = str(path), path.suffix.lower()
        if _is_hidden(path) or suffix not in KEPT_SUFFIXES | ARCHIVE_SUFFIXES:
            self._unused += 1
            return None
        problem = self._file_problem(name, suffix, member.size)
        if problem:
            self._add_fault(member.name, problem)
            return None
        self._names.add(name)
        return name

    def _file_problem(self, name: str, suffix: str, size: int) -> str:
        if suffix in ARCHIVE_SUFFIXES:
            return "is an archive in an archive; unpack it and pack its images directly"
        if name in self._names:
            return "is in the archive twice; leave one of them out"
        if size > MAX_MEMBER_BYTES:
            return f"has over {MAX_MEMBER_BYTES // _MIB} MiB; no image needs as much"
        return ""

    def _write(self, name: str, data: Iterator[bytes]) -> None:
        suffix = PurePosixPath(name).suffix.lower()
        path = self._folder / f"{len(self._files) + 1:08d}{suffix}"
        # "x": nothing that is there already is overwritten, nor a link followed.
        with path.open("xb") as file:
            self._files[name] = path
            try:
                for chunk in data:
                    file.write(chunk)
                return
            except _DamagedError as error:
                self._add_fault(name, str(error))
        path.unlink()
        del self._files[name]

    def _add_fault(self, name: str, problem: str) -> None:
        if len(self._problems) < MAX_PROBLEMS:
            self._problems.append(Problem(_shown(name) or self._where, problem))
        else:
            self._more_faults += 1


def _shown(name: str) -> str:
    """A name as it may be printed anywhere, and not at any length."""
    text = name[:200].encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    shown = "".join(character if character.isprintable() else "\ufffd" for character in text)
    return shown + "…" * (len(name) > 200)


def _damage(error: Exception) -> str:
    # zipfile quotes names in its messages.
    return f"is damaged or cut off ({_shown(str(error)) or 'it ends too soon'}); pack it again"


def _too_many_entries() -> str:
    return f"has over {MAX_ENTRIES:,} entries; split it into several datasets"


def _name_problem(name: str) -> str:
    if len(name.encode("utf-8", "surrogateescape")) > MAX_NAME_BYTES:
        return f"has a name of over {MAX_NAME_BYTES} bytes; give it a shorter one"
    if any(unicodedata.category(character) == "Cc" for character in name):
        return "has a control character in its name; rename it"
    if any("\ud800" <= character <= "\udfff" for character in name):
        return "has a name that is not UTF-8; rename it"
    if "\\" in name:
        return "has a backslash in its name; rename it, or pack it with '/' between folders"
    path = PurePosixPath(name)
    if path.is_absolute() or re.match("[A-Za-z]:", name):
        return "has an absolute path; pack it with a path from the archive's top"
    if ".." in path.parts:
        return "goes up by '..'; pack it with a path from the archive's top"
    return "" if name else "has no name; pack it again"


def _is_hidden(path: PurePosixPath) -> bool:
    """Whether a path is of the files that desktops add unasked."""
    return any(part.startswith(".") or part == "__MACOSX" for part in path.parts)


def _check_directory(file: io.BufferedReader) -> None:
    """Stop before zipfile reads a zip's directory, if that is too large."""
    try:
        # Private, but it is what zipfile itself finds the directory with: a search of our own
        # could find another one than is then read.
        end = zipfile._EndRecData(file)  # type: ignore[attr-defined]
    except _DAMAGE as error:
        raise _StopError(_damage(error)) from error
    if end is None:
        raise _StopError(_damage(EOFError("its directory is missing")))
    # The fields are those of an "end of central directory" record, then the comment and where
    # the record is. A 64-bit one has another 76 bytes between the directory and itself.
    size, location = end[5], end[9]
    if size > MAX_DIRECTORY_BYTES:
        raise _StopError(f"has a directory of over {MAX_DIRECTORY_BYTES // _MIB} MiB")
    file.seek(max(0, location - size - 76))
    # Each entry begins so: there cannot be more of them than this, whatever the record says.
    if file.read(size + 76).count(b"PK\x01\x02") > MAX_ENTRIES:
        raise _StopError(_too_many_entries())


def _zip_member(info: zipfile.ZipInfo) -> _Member:
    name = info.orig_filename  # zipfile cuts the other one at a NUL
    if not info.flag_bits & 0x800:
        # Not marked as UTF-8, which macOS never does though it is; it is cp437 by the standard.
        try:
            name = name.encode("cp437").decode("utf-8")
        except UnicodeError:
            name = info.orig_filename
    kind = stat.S_IFMT(info.external_attr >> 16)
    problem = ""
    if kind == stat.S_IFLNK:
        problem = "is a link; pack the file itself"
    elif kind in (stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO, stat.S_IFSOCK):
        problem = "is a device or pipe, not a file; leave it out"
    elif info.flag_bits & 0x41:
        problem = "is encrypted; pack it without a password"
    elif info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        # zipfile unpacks no other compression piece by piece.
        problem = "is not compressed by 'deflate'; pack it with that, or without compression"
    is_folder = name.endswith("/") or kind == stat.S_IFDIR
    return _Member(name, info.file_size, is_folder, problem)


def _zip_data(archive: zipfile.ZipFile, info: zipfile.ZipInfo, meter: _Meter) -> Iterator[bytes]:
    left = info.file_size
    try:
        with archive.open(info) as file:
            while chunk := file.read(_CHUNK_BYTES):
                meter.add(len(chunk))
                left -= len(chunk)
                yield chunk
    except _DAMAGE as error:
        raise _DamagedError(_damage(error)) from error
    if left:
        raise _DamagedError(_damage(EOFError()))


def _is_tar(start: bytes) -> bool:
    return start[257:262] == b"ustar"


def _read(source: io.BufferedIOBase, count: int) -> bytes:
    """Up to so many bytes, fewer at the end only; stops where they are damaged."""
    try:
        return source.read(count)
    except _DAMAGE as error:
        raise _StopError(_damage(error)) from error


class _Tar:
    """Reads a tar forwards, in little memory.

    Not by ``tarfile.TarFile``: it takes a header that it cannot read for the end, keeps all of
    any extended header and of any sparse file's map in memory, and calls itself for each header
    that precedes a member. Only its reading of the one block that every header has is used.
    """

    def __init__(self, source: io.BufferedIOBase, meter: _Meter) -> None:
        self._source = source
        self._meter = meter

    def next(self) -> _Member | None:
        """The next member, whose data must be read before the one after it; None at the end."""
        name, fields = None, dict[bytes, bytes]()
        header_bytes = 0
        while True:
            block = self._exactly(_BLOCK)
            if not any(block):
                return None
            info = _tar_header(block)
            if info.type not in _EXTENSIONS:
                break
            header_bytes += _BLOCK + _in_blocks(info.size)
            if header_bytes > MAX_HEADER_BYTES:
                raise _StopError(f"has a header of over {MAX_HEADER_BYTES // _MIB} MiB")
            data = self._exactly(_in_blocks(info.size))[: info.size]
            if info.type == tarfile.GNUTYPE_LONGNAME:
                name = data.partition(b"\0")[0]
            elif info.type in (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE):
                fields |= _pax_fields(data)
        has_more_map = info.type == tarfile.GNUTYPE_SPARSE and block[482]
        while has_more_map:
            has_more_map = self._exactly(_BLOCK)[504]
        return _tar_member(info, fields.get(b"path", name), fields)

    def data(self, member: _Member) -> Iterator[bytes]:
        """A member's bytes, once."""
        left, padding = member.size, _in_blocks(member.size) - member.size
        while left:
            chunk = self._exactly(min(left, _CHUNK_BYTES))
            left -= len(chunk)
            yield chunk
        self._exactly(padding)

    def finish(self) -> None:
        """Read what follows the end, as gzip's checksum comes last."""
        while chunk := _read(self._source, _CHUNK_BYTES):
            self._meter.add(len(chunk))

    def _exactly(self, count: int) -> bytes:
        data = _read(self._source, count)
        self._meter.add(len(data))
        if len(data) < count:
            raise _StopError(_damage(EOFError()))
        return data


_EXTENSIONS = (
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
    tarfile.XHDTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.XGLTYPE,
)


def _in_blocks(size: int) -> int:
    return -(-size // _BLOCK) * _BLOCK


def _tar_header(block: bytes) -> tarfile.TarInfo:
    try:
        info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except (tarfile.TarError, ValueError) as error:
        raise _StopError(_damage(error)) from error
    if info.size < 0:
        raise _StopError(_damage(ValueError("a size below 0")))
    return info


def _pax_fields(data: bytes) -> dict[bytes, bytes]:
    """Those fields of an extended header that matter here: ``path``, ``size``, ``GNU.sparse.*``."""
    fields = {}
    start = 0
    while start < len(data):
        # Each is "<length of all this> <key>=<value>\n".
        digits = data[start : start + 8].partition(b" ")[0]
        length = int(digits) if digits.isdigit() else 0
        record = data[start : start + length]
        key, equals, value = record[len(digits) + 1 : -1].partition(b"=")
        if not equals or len(record) < length or not record.endswith(b"\n"):
            raise _StopError(_damage(ValueError("an extended header that is none")))
        start += length
        if key.startswith(b"GNU.sparse."):
            key = b"GNU.sparse"
        if key in (b"path", b"size", b"GNU.sparse"):
            fields[key] = value
    return fields


def _tar_member(info: tarfile.TarInfo, name: bytes | None, fields: dict[bytes, bytes]) -> _Member:
    size = info.size
    if b"size" in fields:
        if not re.fullmatch(rb"\d{1,18}", fields[b"size"]):
            raise _StopError(_damage(ValueError("a size that is none")))
        size = int(fields[b"size"])
    # Links and folders have no data, whatever their headers say.
    has_data = info.isreg() or info.type not in tarfile.SUPPORTED_TYPES
    problem = ""
    if info.issym() or info.islnk():
        problem = "is a link; pack the file itself"
    elif info.isdev():
        problem = "is a device or pipe, not a file; leave it out"
    elif info.type == tarfile.GNUTYPE_SPARSE or b"GNU.sparse" in fields:
        problem = "is packed as a sparse file; pack it without --sparse"
    elif not info.isreg() and not info.isdir():
        problem = f"is of an unknown kind ({_shown(repr(info.type))}); pack it as a plain file"
    shown = info.name if name is None else name.decode("utf-8", "surrogateescape")
    return _Member(shown, size if has_data else 0, info.isdir(), problem)
