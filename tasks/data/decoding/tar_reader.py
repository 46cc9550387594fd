"""Reads tar archives forwards, in little memory."""

import re
import tarfile
from collections.abc import Iterator
from io import BufferedIOBase

from tasks.data.decoding.archive_members import (
    CHUNK_BYTES,
    MIB,
    Member,
    UnpackedBytes,
    UnpackingStoppedError,
    damage_message,
    read_up_to,
)
from tasks.escaping import quoted

BLOCK_BYTES = tarfile.BLOCKSIZE
# What may precede one member: long names and attributes, which are some kilobytes.
MAX_HEADER_BYTES = MIB
_EXTENSIONS = (
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
    tarfile.XHDTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.XGLTYPE,
)


def is_tar(start: bytes) -> bool:
    """Return whether a file's first block is a tar's."""
    return start[257:262] == b"ustar"


class TarReader:
    """Reads the members of a tar in order.

    ``tarfile.TarFile`` is not safe here: it takes a header that it cannot read for the end, keeps
    every extended header and every sparse file's map whole in memory, and recurses for each header
    that precedes a member. Only its parser of the one block that every header has is used.

    Args:
        source: The tar's bytes.
        unpacked: Counts all bytes that are read, with headers and unused members.
    """

    def __init__(self, source: BufferedIOBase, unpacked: UnpackedBytes) -> None:
        self._source = source
        self._unpacked = unpacked

    def next(self) -> Member | None:
        """Return the next member; None at the end. Its data must be read before the next call."""
        name, fields = None, dict[bytes, bytes]()
        header_bytes = 0
        while True:
            block = self._exactly(BLOCK_BYTES)
            if not any(block):
                return None
            info = _tar_header(block)
            if info.type not in _EXTENSIONS:
                break
            header_bytes += BLOCK_BYTES + _in_blocks(info.size)
            if header_bytes > MAX_HEADER_BYTES:
                raise UnpackingStoppedError(f"has a header of over {MAX_HEADER_BYTES // MIB} MiB")
            data = self._exactly(_in_blocks(info.size))[: info.size]
            if info.type == tarfile.GNUTYPE_LONGNAME:
                name = data.partition(b"\0")[0]
            elif info.type in (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE):
                fields |= _pax_fields(data)
        has_more_map = info.type == tarfile.GNUTYPE_SPARSE and block[482]
        while has_more_map:
            has_more_map = self._exactly(BLOCK_BYTES)[504]
        return _tar_member(info, fields.get(b"path", name), fields)

    def data(self, member: Member) -> Iterator[bytes]:
        """Yield a member's bytes. They can be read once."""
        left, padding = member.size, _in_blocks(member.size) - member.size
        while left:
            chunk = self._exactly(min(left, CHUNK_BYTES))
            left -= len(chunk)
            yield chunk
        self._exactly(padding)

    def finish(self) -> None:
        """Read what follows the last member, so that gzip verifies its checksum."""
        while chunk := read_up_to(self._source, CHUNK_BYTES):
            self._unpacked.add(len(chunk))

    def _exactly(self, count: int) -> bytes:
        data = read_up_to(self._source, count)
        self._unpacked.add(len(data))
        if len(data) < count:
            raise UnpackingStoppedError(damage_message(EOFError()))
        return data


def _in_blocks(size: int) -> int:
    return -(-size // BLOCK_BYTES) * BLOCK_BYTES


def _tar_header(block: bytes) -> tarfile.TarInfo:
    try:
        info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except (tarfile.TarError, ValueError) as error:
        raise UnpackingStoppedError(damage_message(error)) from error
    if info.size < 0:
        raise UnpackingStoppedError(damage_message(ValueError("negative size")))
    return info


def _pax_fields(data: bytes) -> dict[bytes, bytes]:
    """Return the used fields of an extended header: ``path``, ``size``, ``GNU.sparse.*``."""
    fields = {}
    start = 0
    while start < len(data):
        # Each field is "<length of the whole field> <key>=<value>\n".
        digits = data[start : start + 8].partition(b" ")[0]
        length = int(digits) if digits.isdigit() else 0
        record = data[start : start + length]
        key, equals, value = record[len(digits) + 1 : -1].partition(b"=")
        if not equals or len(record) < length or not record.endswith(b"\n"):
            raise UnpackingStoppedError(damage_message(ValueError("invalid extended header")))
        start += length
        if key.startswith(b"GNU.sparse."):
            key = b"GNU.sparse"
        if key in (b"path", b"size", b"GNU.sparse"):
            fields[key] = value
    return fields


def _tar_member(info: tarfile.TarInfo, name: bytes | None, fields: dict[bytes, bytes]) -> Member:
    size = info.size
    if b"size" in fields:
        if not re.fullmatch(rb"\d{1,18}", fields[b"size"]):
            raise UnpackingStoppedError(damage_message(ValueError("invalid size")))
        size = int(fields[b"size"])
    # Links and folders have no data, whatever size their headers give.
    has_data = info.isreg() or info.type not in tarfile.SUPPORTED_TYPES
    problem = ""
    if info.issym() or info.islnk():
        problem = "is a link; pack the file itself"
    elif info.isdev():
        problem = "is a device or pipe, not a file; remove it"
    elif info.type == tarfile.GNUTYPE_SPARSE or b"GNU.sparse" in fields:
        problem = "is packed as a sparse file; pack it without --sparse"
    elif not info.isreg() and not info.isdir():
        problem = f"is of an unknown kind ({quoted(info.type)}); pack it as a plain file"
    text = info.name if name is None else name.decode("utf-8", "surrogateescape")
    return Member(text, size if has_data else 0, info.isdir(), problem)
