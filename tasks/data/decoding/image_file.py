"""Image files: opened by the decoder of their format and no other, under limits."""

import io
import re
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from typing import BinaryIO

from PIL import AvifImagePlugin, Image, ImageOps, PngImagePlugin, UnidentifiedImageError

from tasks.data.decoding.color import MAX_PROFILE_BYTES, PILLOW_ERRORS
from tasks.data.formats import (
    AVIF,
    HEIF,
    JPEG,
    NO_IMAGES,
    PNG,
    READ,
    READ_NAMES,
    START_BYTES,
    FileFormat,
    format_of_data,
)

# 16k x 16k: more than any camera has.
MAX_PIXELS = 16384 * 16384
MAX_DECODING_BYTES = 2 * 2**30
"""The memory that decoding may take, files included. A small CPU worker has 4 GiB."""
# Encoders write 10. Each scan of a few bytes costs a pass over all pixels.
MAX_JPEG_SCANS = 100
_JPEG_MARKER = re.compile(rb"\xff+([^\x00\xff\xd0-\xd7])")
_END_OF_IMAGE, _START_OF_SCAN = b"\xd9", b"\xda"
# The length behind the marker is at most 14. Three bytes are found in half the time of two.
_SCAN_HEADER = b"\xff\xda\0"
[_PNG] = PNG.starts
# Chunks of a PNG that its pixels do not depend on, and the texts that may say how it is rotated.
_TEXT_CHUNKS = frozenset({b"tEXt", b"zTXt", b"iTXt"})
_MAX_ROTATION_BYTES = 2**20
_ROTATIONS = (b"XML:com.adobe.xmp\0", b"Raw profile type exif\0", b"Raw profile type APP1\0")
# By a PNG's color type, if it has 8 bits or fewer a channel.
_PNG_MODES = {0: "L", 2: "RGB", 3: "P", 4: "LA", 6: "RGBA"}
# An unreadable profile, which takes the place of others.
_NO_PROFILE = b"\0\0\0\3iCCPx\0\0" + zlib.crc32(b"iCCPx\0\0").to_bytes(4)
# Bytes a pixel of Pillow's images; 4 in all other modes.
_STORED_BYTES = {"1": 1, "L": 1, "P": 1, "I;16": 2}
# libwebp's two canvases, its lossless pixels, the frame's copy, and the image.
_WEBP_BYTES = 18.0
# The coded planes of up to 16 bits, the pixels of libheif or libavif, and Pillow's.
_HEIF_BYTES, _AVIF_BYTES = 28.0, 20.0
# libjpeg holds the coefficients of a whole image that has several scans.
_COEFFICIENT_BYTES = 2
SCALE_16_TO_8 = 1 / 257
"""What turns values of 16 bits into values of 8 bits."""
# Pillow warns at a third of our limit, and its warnings cannot be silenced safely in threads.
Image.MAX_IMAGE_PIXELS = None
# Each thread would take memory that the header does not declare.
AvifImagePlugin.DEFAULT_MAX_THREADS = 1
# The limit of a PNG's profile too.
PngImagePlugin.MAX_TEXT_CHUNK = MAX_PROFILE_BYTES


class UnreadableImageError(ValueError):
    """The bytes are not a supported image; the message says why."""


class OtherFormatError(UnreadableImageError):
    """The bytes are of a format that is known and not read.

    Args:
        format: The format.
    """

    def __init__(self, format: FileFormat) -> None:
        super().__init__(f"{format.refusal}; {format.remedy}")
        self.format = format


@dataclass(frozen=True)
class ImageHeader:
    """What an image's header declares.

    Attributes:
        size: Width and height in pixels, before the image becomes upright.
        decoding_bytes: The memory that decoding takes at most, besides the file's bytes.
    """

    size: tuple[int, int]
    decoding_bytes: int


def read_header(file: BinaryIO) -> ImageHeader:
    """Return what an image file declares, without decoding it.

    Raises:
        UnreadableImageError: It is not an image, or it has too many pixels.
    """
    with _damage_reported():
        return _read_header(file)[0]


def check_memory(needed_bytes: int) -> None:
    """Refuse an image that takes too much memory.

    Raises:
        UnreadableImageError: Decoding takes more than the maximum.
    """
    if needed_bytes > MAX_DECODING_BYTES:
        raise UnreadableImageError(
            f"takes {needed_bytes // 2**20 + 1:,} MiB of memory to decode; "
            f"the maximum is {MAX_DECODING_BYTES // 2**20:,} MiB"
        )


@contextmanager
def loaded(data: bytes) -> Iterator[Image.Image]:
    """Load the image in a file's bytes, upright, and turn Pillow's errors into ours."""
    with _damage_reported():
        header, image = _read_header(io.BytesIO(data))
        check_memory(len(data) + header.decoding_bytes)
        if image is None or data.startswith(_PNG):
            image = _opened(io.BytesIO(_without_texts(data) if data.startswith(_PNG) else data))
        with image:
            if format_of_data(data[:START_BYTES]) is JPEG and _has_many_scans(data):
                raise UnreadableImageError(
                    f"is a JPEG of over {MAX_JPEG_SCANS} scans, which take long to decode"
                )
            image.load()
            # In place: a copy of a large image takes a third of the time to decode it.
            ImageOps.exif_transpose(image, in_place=True)
            _scale_transparent_color(image, bits_of(data, image))
            yield image


def _read_header(file: BinaryIO) -> tuple[ImageHeader, Image.Image | None]:
    """Return a file's header, and its image if reading the header has opened that."""
    # Opening a WebP would allocate its canvas, and opening a PNG unpack its texts.
    start, copied, image = file.read(33), 0, None
    file.seek(0)
    if (canvas := _webp_canvas(start)) is not None:
        (width, height), bytes_a_pixel = canvas, _WEBP_BYTES
    elif start[:8] == _PNG and start[12:16] == b"IHDR" and len(start) == 33:
        width, height, bits, color = struct.unpack(">IIBB", start[16:26])
        mode = "I;16" if (bits, color) == (16, 0) else _PNG_MODES.get(color, "RGBA")
        bytes_a_pixel, copied = _bytes_a_pixel(mode), file.seek(0, io.SEEK_END)
    else:
        image = _opened(file)
        (width, height), bytes_a_pixel = image.size, _bytes_a_pixel(image.mode, image)
    if width * height > MAX_PIXELS:
        raise UnreadableImageError(f"has {width}x{height} pixels; the maximum is {MAX_PIXELS:,}")
    return ImageHeader((width, height), int(width * height * bytes_a_pixel) + copied), image


def format_of(file: BinaryIO) -> FileFormat:
    """Return the format of an image that is read, by the file's first bytes.

    Raises:
        UnreadableImageError: It is none.
    """
    start = file.read(START_BYTES)
    file.seek(0)
    found = format_of_data(start)
    if not start:
        raise UnreadableImageError("is empty")
    if found is None:
        raise UnreadableImageError(f"is not a {READ_NAMES} image")
    if found in NO_IMAGES:
        message = f"is {found.article} {found.name}, not an image; {found.remedy}"
        raise UnreadableImageError(message)
    if found not in READ:
        raise OtherFormatError(found)
    return found


def _opened(file: BinaryIO) -> Image.Image:
    """Open an image with the decoder of its format, and no other."""
    format = format_of(file)
    if format is HEIF:
        _register_heif()
    try:
        return Image.open(file, formats=(format.decoder,))
    except UnidentifiedImageError as error:
        message = f"cannot be decoded: it is a damaged or truncated {format.name}"
        raise UnreadableImageError(message) from error


@cache
def _register_heif() -> None:
    """Add the decoder of HEIF to Pillow."""
    # Here: few datasets need it, and its library is large.
    from pi_heif import register_heif_opener

    # Each thread would take memory that the header does not declare.
    register_heif_opener(thumbnails=False, decode_threads=1)


@contextmanager
def _damage_reported() -> Iterator[None]:
    """Turn Pillow's errors into ours."""
    try:
        yield
    except UnreadableImageError:
        raise
    except PILLOW_ERRORS as error:
        reason = str(error) or type(error).__name__
        raise UnreadableImageError(f"cannot be decoded: {reason}") from error


def _bytes_a_pixel(mode: str, image: Image.Image | None = None) -> float:
    """Return the memory a pixel of the costliest step: decoding, rotating, or converting to RGB."""
    if image is not None and image.format in (HEIF.decoder, AVIF.decoder):
        return _HEIF_BYTES if image.format == HEIF.decoder else _AVIF_BYTES
    stored = _STORED_BYTES.get(mode, 4)
    samples = 0 if image is None else _jpeg_samples(image)
    return max(stored + _COEFFICIENT_BYTES * samples, 2 * stored, stored + 4)


def _jpeg_samples(image: Image.Image) -> float:
    """Return the number of samples a pixel of a JPEG, at most; 0 for other images."""
    layers: list[tuple[int, ...]] = getattr(image, "layer", [])
    if not layers:
        return 0
    sampling = [(across, down) for _, across, down, *_ in layers]
    whole = max(across for across, _ in sampling) * max(down for _, down in sampling)
    return sum(across * down for across, down in sampling) / whole


def _webp_canvas(start: bytes) -> tuple[int, int] | None:
    """Return the size in a WebP's header; None if the file is of another format."""
    if len(start) < 30 or start[:4] != b"RIFF" or start[8:12] != b"WEBP":
        return None
    match start[12:16]:
        case b"VP8 ":
            width, height = struct.unpack("<HH", start[26:30])
            return width & 0x3FFF, height & 0x3FFF
        case b"VP8L":
            bits = int.from_bytes(start[21:25], "little")
            return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
        case b"VP8X":
            width = int.from_bytes(start[24:27], "little")
            return width + 1, int.from_bytes(start[27:30], "little") + 1
    return None


def _has_many_scans(data: bytes) -> bool:
    if data.count(_SCAN_HEADER) <= MAX_JPEG_SCANS:
        return False
    # Some of these may be in metadata, or in what cameras append: a film, other images.
    scans, position = 0, 2
    while scans <= MAX_JPEG_SCANS and (marker := _JPEG_MARKER.search(data, position)):
        if marker[1] == _END_OF_IMAGE:
            break
        scans += marker[1] == _START_OF_SCAN
        # Each segment begins with its length.
        position = marker.end() + int.from_bytes(data[marker.end() : marker.end() + 2])
    return scans > MAX_JPEG_SCANS


def _without_texts(png: bytes) -> bytes:
    """Return a PNG without its texts and an unreadable profile, whose size may be any."""
    whole, start, at = memoryview(png), 0, len(_PNG)
    kept: list[memoryview | bytes] = []
    while at + 8 <= len(png):
        end = at + 12 + int.from_bytes(whole[at : at + 4])
        name, body = png[at + 4 : at + 8], at + 8
        may_rotate = end - body < _MAX_ROTATION_BYTES and png.startswith(_ROTATIONS, body)
        is_text = name in _TEXT_CHUNKS and not may_rotate
        if is_text or (name == b"iCCP" and not _is_readable_profile(whole[body : end - 4])):
            kept += [whole[start:at], b"" if is_text else _NO_PROFILE]
            start = end
        at = end
    return b"".join([*kept, whole[start:]]) if kept else png


def _is_readable_profile(chunk: memoryview) -> bool:
    """Return whether a PNG's profile can be unpacked, to a size within the limit."""
    _, _, packed = bytes(chunk).partition(b"\0")
    with suppress(zlib.error):
        unpacked = zlib.decompressobj().decompress(packed[1:], MAX_PROFILE_BYTES + 1)
        return packed[:1] == b"\0" and len(unpacked) <= MAX_PROFILE_BYTES
    return False


def bits_of(data: bytes, image: Image.Image) -> int:
    """Return the bits a channel of an image in a file."""
    return data[24] if data.startswith(_PNG) else int(image.info.get("bit_depth", 8))


def _scale_transparent_color(image: Image.Image, bits: int) -> None:
    """Scale the transparent color of a PNG to 8 bits, as Pillow does its pixels."""
    color = image.info.get("transparency")
    if image.mode == "RGB" and bits == 16 and isinstance(color, tuple):
        image.info["transparency"] = tuple(value >> 8 for value in color)
    elif image.mode == "I;16" and isinstance(color, int):
        image.info["transparency"] = int(color * SCALE_16_TO_8)
    elif image.mode == "L" and bits < 8 and isinstance(color, int):
        image.info["transparency"] = color * 255 // (2**bits - 1)
