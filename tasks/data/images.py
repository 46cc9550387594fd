"""Image decoding: upright RGB, under limits.

The whole project has this one decoder, so that a digest taken in ``prepare`` is that of the pixels
that the trainer reads.
"""

import hashlib
import io
import struct
from dataclasses import dataclass

from PIL import Image, ImageOps, UnidentifiedImageError

# Formats that are usual for photographs and drawings, with widely fuzzed decoders.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP")
SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp"})
# 16k x 16k: more than any camera has. Decoded it takes 768 MB, which a small CPU worker has.
MAX_PIXELS = 16384 * 16384
# Small enough to be hashed while it is in the processor's cache.
_STRIP_BYTES = 64 * 1024
# Pillow warns at a third of our limit, and its warnings cannot be silenced safely in threads.
Image.MAX_IMAGE_PIXELS = None


class UnreadableImageError(ValueError):
    """The bytes are not a supported image; the message says why."""


def open_image(data: bytes) -> Image.Image:
    """Return the image in a file's bytes: upright, RGB, on white, an animation's first frame.

    Raises:
        UnreadableImageError: The bytes are not an image, are truncated, or have too many pixels.
    """
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise UnreadableImageError(
                    f"has {image.width}x{image.height} pixels; the maximum is {MAX_PIXELS:,}"
                )
            image.load()
            # In place: a copy of a large image takes a third of the time to decode it.
            ImageOps.exif_transpose(image, in_place=True)
            return _rgb(image)
    except UnidentifiedImageError as error:
        raise UnreadableImageError(f"is not a {', '.join(FORMATS)} image") from error
    # struct.error: Pillow rotates images by rewriting their EXIF data, which may be damaged.
    except (OSError, SyntaxError, ValueError, EOFError, MemoryError, struct.error) as error:
        if isinstance(error, UnreadableImageError):
            raise
        raise UnreadableImageError(f"cannot be decoded: {error}") from error


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


def pixel_count(data: bytes) -> int:
    """Return the number of pixels in a file's header, at most the maximum; 0 if unreadable."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            return min(MAX_PIXELS, image.width * image.height)
    # ``open_image`` reports the error.
    except (OSError, SyntaxError, ValueError, EOFError, MemoryError, struct.error):
        return 0


@dataclass(frozen=True)
class ImageFacts:
    """Properties of an image file, before it becomes upright RGB.

    Attributes:
        format: One of ``FORMATS``.
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
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        frames = getattr(image, "n_frames", 1)
        return ImageFacts(str(image.format), image.mode, image.has_transparency_data, frames)


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        # 16 bits a pixel: Pillow's own conversion clips every value above 255 to white.
        image = image.convert("I").point(lambda value: value * (1 / 257)).convert("L")
    if not image.has_transparency_data:
        return image if image.mode == "RGB" else image.convert("RGB")
    layer = image.convert("RGBA")
    white = Image.new("RGBA", layer.size, "white")
    return Image.alpha_composite(white, layer).convert("RGB")
