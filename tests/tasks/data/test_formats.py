import base64
import io
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tasks.data.decoding.image_file import OtherFormatError, UnreadableImageError
from tasks.data.decoding.images import decode_image, open_image
from tasks.data.formats import NOT_READ, READ, format_of_data, format_of_name

# 64x48 pixels: the left half is (200, 60, 30), the right half (20, 40, 220). No library that the
# tests have can write HEIC.
HEIC = base64.b64decode(
    "AAAAHGZ0eXBoZWljAAAAAG1pZjFoZWljbWlhZgAAAX1tZXRhAAAAAAAAACFoZGxyAAAAAAAAAABwaWN0AAAAAAAAAAAA"
    "AAAAAAAAACJpbG9jAAAAAERAAAEAAQAAAAABoQABAAAAAAAAAIIAAAAjaWluZgAAAAAAAQAAABVpbmZlAgAAAAABAABo"
    "dmMxAAAAAA5waXRtAAAAAAABAAAA/WlwcnAAAADdaXBjbwAAAHZodmNDAQNwAAAAkAAAAAAAHvAA/P34+AAADwNgAAEA"
    "GEABDAH//wNwAAADAJAAAAMAAAMAHroCQGEAAQAqQgEBA3AAAAMAkAAAAwAAAwAeoCCBBZbq5Ka5uAhoMCAAAAMDIAAA"
    "AwAhYgABAAZEAcFzwIkAAAATY29scm5jbHgAAQANAAaAAAAAFGlzcGUAAAAAAAAAQAAAAEAAAAAoY2xhcAAAAEAAAAAB"
    "AAAAMAAAAAEAAAAAAAAAAv////AAAAACAAAAEHBpeGkAAAAAAwgICAAAABhpcG1hAAAAAAAAAAEAAQWBAgMFhAAAAIpt"
    "ZGF0AAAAfigBrwngOSMkv//23T//+eUuQ/T02cF//omsff5D0v/+wq9RGNYsqFo1J0XGXbdpbQVYjHMXAcaNm2oWW/GO"
    "W9lkL9SaUUWyUvaM/PxhvhM8K9+WXxkWNKvaBYscPcHvYPMh6knHnpaYGQxyrcDruS0Of5N81WfbFoAC/E8IXg=="
)


def colors() -> Image.Image:
    image = Image.new("RGB", (64, 48), (200, 60, 30))
    image.paste((20, 40, 220), (32, 0, 64, 48))
    return image


def encoded(kind: str, image: Image.Image | None = None, **options: Any) -> bytes:
    buffer = io.BytesIO()
    (image or colors()).save(buffer, kind, **options)
    return buffer.getvalue()


READABLE = {
    "HEIF": HEIC,
    **{kind: encoded(kind) for kind in ("JPEG", "PNG", "WEBP", "BMP", "AVIF")},
}


def test_every_format_that_is_read_is_decoded() -> None:
    assert set(READABLE) == {it.name for it in READ}
    for name, data in READABLE.items():
        image = open_image(data)
        assert (image.mode, image.size) == ("RGB", (64, 48)), name
        for x, color in ((8, (200, 60, 30)), (56, (20, 40, 220))):
            pixel = image.getpixel((x, 24))
            assert isinstance(pixel, tuple)
            assert all(abs(a - b) < 12 for a, b in zip(pixel, color, strict=True)), name
        assert decode_image(data)[1].format == name


@pytest.mark.parametrize("name", READABLE)
def test_a_truncated_image_is_refused(name: str) -> None:
    data = READABLE[name]
    for length in (3, 12, 20, len(data) // 2):
        with pytest.raises(UnreadableImageError):
            open_image(data[:length])


def test_the_first_image_of_a_phones_jpeg_is_read() -> None:
    other = Image.new("RGB", (64, 48), "white")
    data = encoded("MPO", save_all=True, append_images=[other], quality=95)
    facts = decode_image(data)[1]
    assert (facts.format, facts.frames) == ("JPEG", 1)
    first = Image.open(io.BytesIO(data))
    assert first.format == "MPO"
    assert open_image(data).tobytes() == first.convert("RGB").tobytes()


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("GIF", "is a GIF, which is not read; save it as PNG"),
        ("TIFF", "is a TIFF, which is not read; save it as PNG"),
        ("JPEG2000", "is a JPEG 2000, which is not read; save it as PNG"),
        ("ICO", "is a Windows icon, which is not read; save it as PNG"),
        ("PPM", "is a Netpbm image, which is not read; save it as PNG"),
        ("PDF", "is a PDF, which is not read; save it as PNG"),
        ("EPS", "is a PostScript file, which is not read; save it as PNG"),
        ("DDS", "is a DDS texture, which is not read; save it as PNG"),
    ],
)
def test_another_format_is_named_by_its_content(kind: str, text: str) -> None:
    with pytest.raises(OtherFormatError) as error:
        open_image(encoded(kind))
    assert str(error.value) == text


@pytest.mark.parametrize(
    ("start", "name"),
    [
        (b"\0\0\0\x18ftypcrx \0\0\0\1crx isom", "camera RAW file"),
        (b"II*\0\x10\0\0\0CR\2\0", "camera RAW file"),
        (b"\xff\x0a\xfa\x1f", "JPEG XL"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"),
        (b"\0\0\0\x14ftypqt  \0\0\2\0qt  ", "video"),
        (b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom", "video"),
        (b"RIFF\0\0\0\0AVI LIST", "video"),
        (b"\0\0\0\x1cftypmif1\0\0\0\0mif1avifmiaf", "AVIF"),
        (b"\0\0\0\x1cftypmif1\0\0\0\0mif1heicmiaf", "HEIF"),
        (b"\0\5\x16\7\0\2\0\0Mac OS X", "AppleDouble file of macOS"),
        (b"<!DOCTYPE html><html>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "pointer of Git LFS"),
        (b"8BPS\0\1", "Photoshop file"),
    ],
)
def test_a_format_is_detected_by_first_bytes(start: bytes, name: str) -> None:
    found = format_of_data(start)
    assert found is not None
    assert found.name == name


@pytest.mark.parametrize("data", [b"", b"plain text", b"RIFF\0\0\0\0WAVE", b"\0" * 300])
def test_unknown_bytes_have_no_format(data: bytes) -> None:
    assert format_of_data(data) is None


def test_a_suffix_belongs_to_one_format() -> None:
    suffixes = [(suffix, it) for it in (*READ, *NOT_READ) for suffix in it.suffixes]
    assert len({suffix for suffix, _ in suffixes}) == len(suffixes)
    for suffix, each in suffixes:
        assert suffix == suffix.lower() == Path("x" + suffix).suffix
        assert format_of_name("A" + suffix.upper()) is each
    assert format_of_name("notes.txt") is None


def test_names_of_formats_differ() -> None:
    names = [it.name for it in (*READ, *NOT_READ)]
    assert len(set(names)) == len(names)
