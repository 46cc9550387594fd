"""The file in a multipart form, read as it arrives."""

from collections.abc import AsyncIterator

from python_multipart import MultipartParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header

from console.errors import BadRequestError, InvalidRequestError, UnsupportedMediaTypeError

FORM_TYPE = "multipart/form-data"
FIELD = "file"
"""Name of the form's field."""
FORM_SCHEMA = {
    "type": "object",
    "description": "A form with one file.",
    "properties": {
        FIELD: {"type": "string", "format": "binary", "description": "An archive of images."}
    },
    "required": [FIELD],
}
"""The form in the API's description."""


class FormFile:
    """The one file of a form, which has no other field.

    Args:
        content_type: The ``Content-Type`` of the request.
        chunks: The body of the request.

    Raises:
        UnsupportedMediaTypeError: The body is no form.
    """

    def __init__(self, content_type: str, chunks: AsyncIterator[bytes]) -> None:
        kind, options = parse_options_header(content_type)
        boundary = options.get(b"boundary")
        if kind != FORM_TYPE.encode() or not boundary:
            raise UnsupportedMediaTypeError(FORM_TYPE)
        self._chunks = chunks
        self._data: list[bytes] = []
        self._header, self._value = b"", b""
        self._headers: dict[bytes, bytes] = {}
        self._parts, self._is_open, self._is_complete = 0, False, False
        self.name: str | None = None
        """Name that the sender gives the file; None before its headers have arrived."""
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

    async def start(self) -> str:
        """Read until the file begins, and return its name.

        Raises:
            BadRequestError: The form is malformed or truncated.
            InvalidRequestError: It has another field than the file.
        """
        while self.name is None:
            await self._read()
        return self.name

    async def data(self) -> AsyncIterator[bytes]:
        """Yield the file's bytes until the form's end.

        Raises:
            BadRequestError: The form is malformed or truncated.
            InvalidRequestError: It has another field than the file.
        """
        while True:
            data, self._data = self._data, []
            for chunk in data:
                yield chunk
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
        if self._is_complete and self._parts != 1:
            raise _other_fields()

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
        self._parts += 1
        if self._parts > 1 or options.get(b"name") != FIELD.encode() or b"filename" not in options:
            raise _other_fields()
        self.name = options[b"filename"].decode("utf-8", "replace")
        self._is_open = True

    def _add_data(self, data: bytes, start: int, end: int) -> None:
        if self._is_open:
            self._data.append(data[start:end])

    def _close_part(self) -> None:
        self._is_open = False

    def _end(self) -> None:
        self._is_complete = True


def _other_fields() -> InvalidRequestError:
    message = f"the form must have one field, {FIELD!r}, with a file"
    return InvalidRequestError(message, FIELD, "send it as curl -F file=@images.zip does")
