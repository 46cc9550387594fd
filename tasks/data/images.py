"""Image decoding: upright RGB, under limits.

The whole project has this one decoder, so that a digest taken in ``prepare`` is that of the pixels
that the trainer reads.
"""

import hashlib
import io
import re
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import BinaryIO

from PIL import AvifImagePlugin, Image, ImageOps, UnidentifiedImageError

from tasks.data.formats import (
    AVIF,
    HEIF,
    JPEG,
    NO_IMAGES,
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
# Bytes a pixel of Pillow's images; 4 in all other modes.
_STORED_BYTES = {"1": 1, "L": 1, "P": 1, "I;16": 2}
# libwebp's two canvases, its lossless pixels, the frame's copy, and the image.
_WEBP_BYTES = 18.0
# The coded planes of up to 16 bits, the pixels of libheif or libavif, and Pillow's.
_HEIF_BYTES, _AVIF_BYTES = 28.0, 20.0
# libjpeg holds the coefficients of a whole image that has several scans.
_COEFFICIENT_BYTES = 2
# Small enough to be hashed while it is in the processor's cache.
_STRIP_BYTES = 64 * 1024
# Pixels that are converted at a time; small images are converted whole.
_STRIP_PIXELS = 2**20
# Pillow warns at a third of our limit, and its warnings cannot be silenced safely in threads.
Image.MAX_IMAGE_PIXELS = None
# Each thread would take memory that the header does not declare.
AvifImagePlugin.DEFAULT_MAX_THREADS = 1
# Whatever Pillow raises for invalid bytes. struct.error: it rotates images by rewriting their EXIF
# data, which may be damaged.
_DAMAGE_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    MemoryError,
    struct.error,
    ArithmeticError,
    LookupError,
    TypeError,
)


class UnreadableImageError(ValueError):
    """The bytes are not a supported image; the message says why."""


class OtherFormatError(UnreadableImageError):
    """The bytes are of a format that is known and not read.

    Args:
        format: The format.
    """

    def __init__(self, format: FileFormat) -> None:
        super().__init__(f"is {format.article} {format.name}, which is not read; {format.remedy}")
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
        canvas = _webp_canvas(file)
        if canvas is not None:
            # Opening it would allocate the canvas.
            (width, height), bytes_a_pixel = canvas, _WEBP_BYTES
        else:
            with _opened(file) as image:
                (width, height), bytes_a_pixel = image.size, _bytes_a_pixel(image)
    if width * height > MAX_PIXELS:
        raise UnreadableImageError(f"has {width}x{height} pixels; the maximum is {MAX_PIXELS:,}")
    return ImageHeader((width, height), int(width * height * bytes_a_pixel))


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


def open_image(data: bytes) -> Image.Image:
    """Return the image in a file's bytes: upright, RGB, on white, an animation's first frame.

    Raises:
        UnreadableImageError: The bytes are not an image, are truncated, or break a limit.
    """
    check_memory(len(data) + read_header(io.BytesIO(data)).decoding_bytes)
    with _damage_reported(), _opened(io.BytesIO(data)) as image:
        if format_of_data(data[:START_BYTES]) is JPEG and _has_many_scans(data):
            raise UnreadableImageError(
                f"is a JPEG of over {MAX_JPEG_SCANS} scans, which take long to decode"
            )
        image.load()
        # In place: a copy of a large image takes a third of the time to decode it.
        ImageOps.exif_transpose(image, in_place=True)
        return _rgb(image)


def image_digest(image: Image.Image) -> str:
    """Return the SHA-256 of the mode, size and pixels of an image or mask, in hex."""
    digest = hashlib.sha256(f"{image.mode} {image.width}x{image.height}\n".encode())
    # In strips of rows: ``tobytes`` of the whole would copy a large image twice.
    rows = max(1, _STRIP_BYTES // (4 * image.width))
    for top in range(0, image.height, rows):
        bottom = min(top + rows, image.height)
        digest.update(image.crop((0, top, image.width, bottom)).tobytes())
    return digest.hexdigest()


def open_mask(data: bytes) -> Image.Image:
    """Return the mask in a file's bytes: upright and gray.

    Raises:
        UnreadableImageError: The bytes are not a supported image.
    """
    return open_image(data).convert("L")


@dataclass(frozen=True)
class ImageFacts:
    """Properties of an image file, before it becomes upright RGB.

    Attributes:
        format: The name of one of ``formats.READ``.
        mode: Pillow's pixel mode, such as ``CMYK``.
        is_transparent: Whether it has an alpha channel or a transparent color.
        frames: The number of frames of an animation; 1 for a still image.
    """

    format: str
    mode: str
    is_transparent: bool
    frames: int


def image_facts(data: bytes) -> ImageFacts:
    """Return the properties of a readable image file, without decoding it."""
    format = _format(io.BytesIO(data))
    with _opened(io.BytesIO(data)) as image:
        # Phones and cameras put previews and depth maps behind the image of a JPEG.
        frames = 1 if format is JPEG else getattr(image, "n_frames", 1)
        return ImageFacts(format.name, image.mode, image.has_transparency_data, frames)


def _format(file: BinaryIO) -> FileFormat:
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
    format = _format(file)
    if format is HEIF:
        _register_heif()
    return Image.open(file, formats=(format.decoder,))


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
    except UnidentifiedImageError as error:
        raise UnreadableImageError(f"is not a {READ_NAMES} image") from error
    except _DAMAGE_ERRORS as error:
        reason = str(error) or type(error).__name__
        raise UnreadableImageError(f"cannot be decoded: {reason}") from error


def _bytes_a_pixel(image: Image.Image) -> float:
    """Return the memory a pixel of the costliest step: decoding, rotating, or converting to RGB."""
    if image.format in (HEIF.decoder, AVIF.decoder):
        return _HEIF_BYTES if image.format == HEIF.decoder else _AVIF_BYTES
    stored = _STORED_BYTES.get(image.mode, 4)
    decoding = stored + _COEFFICIENT_BYTES * _jpeg_samples(image)
    rotated = 2 * stored
    is_plain = image.mode == "RGB" and not image.has_transparency_data
    return max(decoding, rotated, stored if is_plain else stored + 4)


def _jpeg_samples(image: Image.Image) -> float:
    """Return the number of samples a pixel of a JPEG, at most; 0 for other images."""
    layers: list[tuple[int, ...]] = getattr(image, "layer", [])
    if not layers:
        return 0
    sampling = [(across, down) for _, across, down, *_ in layers]
    whole = max(across for across, _ in sampling) * max(down for _, down in sampling)
    return sum(across * down for across, down in sampling) / whole


def _webp_canvas(file: BinaryIO) -> tuple[int, int] | None:
    """Return the size in a WebP's header; None if the file is of another format."""
    start = file.read(30)
    file.seek(0)
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
    if data.count(b"\xff" + _START_OF_SCAN) <= MAX_JPEG_SCANS:
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


def _rgb(image: Image.Image) -> Image.Image:
    """Return an image in RGB, on white.

    In strips of rows: whole copies of a transparent image would take 20 bytes a pixel.
    """
    if image.mode == "RGB" and not image.has_transparency_data:
        return image
    rows = max(1, _STRIP_PIXELS // image.width)
    if rows >= image.height:
        return _rgb_strip(image)
    whole = Image.new("RGB", image.size)
    for top in range(0, image.height, rows):
        box = (0, top, image.width, min(top + rows, image.height))
        whole.paste(_rgb_strip(image.crop(box)), box)
    return whole


def _rgb_strip(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        # 16 bits a pixel: Pillow's own conversion clips every value above 255 to white.
        image = image.convert("I").point(lambda value: value * (1 / 257)).convert("L")
    if not image.has_transparency_data:
        return image.convert("RGB")
    layer = image.convert("RGBA")
    white = Image.new("RGBA", layer.size, "white")
    return Image.alpha_composite(white, layer).convert("RGB")
