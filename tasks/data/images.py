"""Images as training sees them: upright RGB, decoded under limits.

One decoder for the whole project, so that a digest taken in ``prepare`` is that of the pixels a
trainer gets.
"""

import hashlib
import io
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from PIL import Image, ImageOps, UnidentifiedImageError

# Formats whose decoders are widely fuzzed and that people use for photographs and drawings.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP")
SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp"})
# 16k x 16k: beyond every camera; decoded it takes 768 MB, which a small CPU worker still has.
MAX_PIXELS = 16384 * 16384
# Small enough to be hashed while it is still in the processor's cache.
_PIECE_BYTES = 64 * 1024
# Pillow's own limit warns at a third of ours, and warnings cannot be silenced safely in threads.
Image.MAX_IMAGE_PIXELS = None


class UnreadableImageError(ValueError):
    """Bytes that are no image of ours."""


def open_image(data: bytes) -> Image.Image:
    """The image in a file's bytes: upright, RGB, on white, an animation's first frame.

    Raises:
        UnreadableImageError: It is none, is broken off, or is too large.
    """
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise UnreadableImageError(
                    f"{image.width}x{image.height} pixels are more than {MAX_PIXELS:,}"
                )
            image.load()
            # In place: a copy of a large image costs as much as a third of its decoding.
            ImageOps.exif_transpose(image, in_place=True)
            return _rgb(image)
    except UnidentifiedImageError as error:
        raise UnreadableImageError(f"is no {', '.join(FORMATS)} image") from error
    # struct.error: Pillow turns images by rewriting their EXIF data, which may be damaged.
    except (OSError, SyntaxError, ValueError, EOFError, MemoryError, struct.error) as error:
        if isinstance(error, UnreadableImageError):
            raise
        raise UnreadableImageError(f"cannot be decoded: {error}") from error


def image_digest(image: Image.Image) -> str:
    """SHA-256 of the kind, size and pixels of an image or mask, in hex."""
    digest = hashlib.sha256(f"{image.mode} {image.width}x{image.height}\n".encode())
    for piece in _pixels(image):
        digest.update(piece)
    return digest.hexdigest()


def _pixels(image: Image.Image) -> Iterator[bytes]:
    """What ``tobytes`` gives, in pieces: it would copy all of a large image twice."""
    image.load()
    encoder = Image._getencoder(image.mode, "raw", (image.mode,))
    encoder.setimage(image.im, (0, 0, *image.size))
    # A row at least, or the encoder makes no progress.
    most, end = max(_PIECE_BYTES, 4 * image.width), 0
    while not end:
        _, end, piece = encoder.encode(most)
        yield piece
    encoder.cleanup()
    if end < 0:
        raise OSError(f"Pillow's raw encoder failed ({end})")


def open_mask(data: bytes) -> Image.Image:
    """The mask in a file's bytes: upright and grey.

    Raises:
        UnreadableImageError: It is no image.
    """
    return open_image(data).convert("L")


def pixel_count(data: bytes) -> int:
    """How many pixels a file claims to have, no more than are read; 0 where it is no image."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            return min(MAX_PIXELS, image.width * image.height)
    # As ``open_image`` will tell.
    except (OSError, SyntaxError, ValueError, EOFError, MemoryError, struct.error):
        return 0


@dataclass(frozen=True)
class ImageFacts:
    """What an image's file is, before it becomes upright RGB.

    Attributes:
        format: One of ``FORMATS``.
        mode: Pillow's name of its pixels' kind, such as ``CMYK``.
        is_transparent: Whether it has an alpha channel or a transparent color.
        frames: How many images it shows one after the other.
    """

    format: str
    mode: str
    is_transparent: bool
    frames: int


def image_facts(data: bytes) -> ImageFacts:
    """What a readable image's file is; decodes nothing."""
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        frames = getattr(image, "n_frames", 1)
        return ImageFacts(str(image.format), image.mode, image.has_transparency_data, frames)


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        # 16 bits a pixel: Pillow's own conversion cuts all above 255 to white.
        image = image.convert("I").point(lambda value: value * (1 / 257)).convert("L")
    if not image.has_transparency_data:
        return image if image.mode == "RGB" else image.convert("RGB")
    layer = image.convert("RGBA")
    white = Image.new("RGBA", layer.size, "white")
    return Image.alpha_composite(white, layer).convert("RGB")
