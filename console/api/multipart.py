"""The files in a multipart form, read as they arrive."""

from collections.abc import AsyncIterator
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

from python_multipart import MultipartParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header

from console.errors import BadRequestError, InvalidRequestError, UnsupportedMediaTypeError
from console.services.threads import in_thread

FORM_TYPE = "multipart/form-data"
FIELD = "file"
"""Name of the form's field."""
MAX_FORM_FILES = 1000
"""Maximum number of files in a form of several."""
FORM_SCHEMA = {
    "type": "object",
    "description": "A form with one file.",
    "properties": {
        FIELD: {"type": "string", "format": "binary", "description": "An archive of images."}
    },
    "required": [FIELD],
}
"""The form in the API's description."""
FILES_SCHEMA = {
    "type": "object",
    "description": "A form with images, their captions in .txt files, or archives of these.",
    "properties": {
        FIELD: {
            "type": "array",
            "items": {"type": "string", "format": "binary"},
            "description": "The files; `a.txt` is the caption of `a.png`.",
        }
    },
    "required": [FIELD],
}
"""The form of several files in the API's description."""


class _Form:
    """A form of files, read as it arrives.

    Args:
        content_type: The ``Content-Type`` of the request.
        chunks: The body of the request.
        max_files: Maximum number of files, all in the field ``FIELD``.

    Raises:
        UnsupportedMediaTypeError: The body is no form.
    """

    def __init__(self, content_type: str, chunks: AsyncIterator[bytes], max_files: int) -> None:
        kind, options = parse_options_header(content_type)
        boundary = options.get(b"boundary")
        if kind != FORM_TYPE.encode() or not boundary:
            raise UnsupportedMediaTypeError(FORM_TYPE)
        self._chunks, self._max_files = chunks, max_files
        self._parts: list[str | bytes] = []
        self._header, self._value = b"", b""
        self._headers: dict[bytes, bytes] = {}
        self._count, self._is_open, self._is_complete = 0, False, False
        try:
            self._parser = MultipartParser(
                boundary,
                {
                    "on_header_field": self._add_to_header,
                    "on_header_value": self._add_to_value,
                    "on_header_end": self._end_header,
                    "on_headers_finished": self._open_part,
                    "on_part_data": self._add_data,
                    "on_part_end": self._close_part,
                    "on_end": self._end,
                },
            )
        except FormParserError as error:
            raise BadRequestError(f"malformed form: {error}", "Content-Type") from error

    async def parts(self) -> AsyncIterator[str | bytes]:
        """Yield the name of each file and, after it, the file's bytes.

        Raises:
            BadRequestError: The form is malformed or truncated.
            InvalidRequestError: It has another field than files, or too many of them.
        """
        while True:
            parts, self._parts = self._parts, []
            for part in parts:
                yield part
            if self._is_complete:
                return
            await self._read()

    async def _read(self) -> None:
        try:
            chunk = await anext(self._chunks)
        except StopAsyncIteration as error:
            raise BadRequestError("the form ends before its closing boundary") from error
        try:
            self._parser.write(chunk)
        except FormParserError as error:
            raise BadRequestError(f"malformed form: {error}") from error
        if self._is_complete and not self._count:
            raise _other_fields(self._max_files)

    def _add_to_header(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _add_to_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _end_header(self) -> None:
        self._headers[self._header.lower()] = self._value
        self._header, self._value = b"", b""

    def _open_part(self) -> None:
        _, options = parse_options_header(self._headers.pop(b"content-disposition", b""))
        self._headers.clear()
        self._count += 1
        is_file = options.get(b"name") == FIELD.encode() and b"filename" in options
        if self._count > self._max_files or not is_file:
            raise _other_fields(self._max_files)
        self._parts.append(options[b"filename"].decode("utf-8", "replace"))
        self._is_open = True

    def _add_data(self, data: bytes, start: int, end: int) -> None:
        if self._is_open:
            self._parts.append(data[start:end])

    def _close_part(self) -> None:
        self._is_open = False

    def _end(self) -> None:
        self._is_complete = True


class FormFile:
    """The one file of a form, which has no other field.

    Args:
        content_type: The ``Content-Type`` of the request.
        chunks: The body of the request.

    Raises:
        UnsupportedMediaTypeError: The body is no form.
    """

    def __init__(self, content_type: str, chunks: AsyncIterator[bytes]) -> None:
        self._parts = _Form(content_type, chunks, max_files=1).parts()

    async def start(self) -> str:
        """Read until the file begins, and return its name.

        Raises:
            BadRequestError: The form is malformed or truncated.
            InvalidRequestError: It has another field than the file.
        """
        name = await anext(self._parts)
        assert isinstance(name, str)
        return name

    async def data(self) -> AsyncIterator[bytes]:
        """Yield the file's bytes until the form's end.

        Raises:
            BadRequestError: The form is malformed or truncated.
            InvalidRequestError: It has another field than the file.
        """
        async for part in self._parts:
            assert isinstance(part, bytes)
            yield part


async def save_files(
    content_type: str, chunks: AsyncIterator[bytes], folder: Path
) -> list[tuple[str, Path]]:
    """Save the files of a form in a folder; return the name of each with its path.

    Raises:
        UnsupportedMediaTypeError: The body is no form.
        BadRequestError: The form is malformed or truncated.
        InvalidRequestError: It has another field than files, or too many of them.
    """
    files: list[tuple[str, Path]] = []
    with ExitStack() as opened:
        file: BinaryIO | None = None
        async for part in _Form(content_type, chunks, MAX_FORM_FILES).parts():
            if isinstance(part, str):
                opened.close()
                path = folder / str(len(files))
                file = opened.enter_context(path.open("wb"))
                files.append((part, path))
            elif file is not None:
                await in_thread(file.write)(part)
    return files


def _other_fields(max_files: int) -> InvalidRequestError:
    if max_files == 1:
        message = f"the form must have one field, {FIELD!r}, with a file"
        return InvalidRequestError(message, FIELD, "send it as curl -F file=@images.zip does")
    message = f"the form must have 1 to {max_files:,} fields {FIELD!r}, each with a file"
    return InvalidRequestError(
        message, FIELD, "send them as curl -F file=@a.png -F file=@a.txt does"
    )
