"""Image decoding: upright RGB, under limits.

The whole project has this one decoder, so that a digest taken in ``prepare`` is that of the pixels
that the trainer reads.
"""

import hashlib
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from PIL import Image, ImageChops, ImageCms

from tasks.data.decoding.color import ColorError, srgb_conversion, values_of
from tasks.data.decoding.image_file import (
    SCALE_16_TO_8,
    UnreadableImageError,
    bits_of,
    format_of,
    loaded,
)
from tasks.data.formats import JPEG

# Pixels that are converted at a time; small images are converted whole.
_STRIP_PIXELS = 2**20
# Of 255: less is the noise of JPEG's colors.
_MIN_CHROMA = 16


def open_image(data: bytes) -> Image.Image:
    """Return the image in a file's bytes; see ``decode_image``."""
    return decode_image(data)[0]


def open_mask(data: bytes) -> Image.Image:
    """Return the mask in a file's bytes; see ``decode_mask``."""
    return decode_mask(data)[0]


@dataclass(frozen=True)
class ImageFacts:
    """Properties of an image file, before it becomes upright RGB.

    Attributes:
        format: The name of one of ``formats.READ``.
        mode: Pillow's pixel mode, such as ``CMYK``.
        bits: The bits a channel.
        alpha: The least and the most opaque value of its alpha channel, of 255.
        frames: The number of frames of an animation; 1 for a still image.
        color_problem: Why its colors are not converted to sRGB; empty if they are.
    """

    format: str
    mode: str
    bits: int
    alpha: tuple[int, int]
    frames: int
    color_problem: str


def decode_image(data: bytes) -> tuple[Image.Image, ImageFacts]:
    """Return the image in a file's bytes: upright, in sRGB, on white, the first frame.

    Raises:
        UnreadableImageError: The bytes are not an image, are truncated, or break a limit.
    """
    with loaded(data) as image:
        conversion, color_problem = None, ""
        try:
            conversion = srgb_conversion(image, data)
        except ColorError as error:
            color_problem = str(error)
        rgb, alpha = _rgb(image, conversion)
        format = format_of(io.BytesIO(data))
        # Phones and cameras put previews and depth maps behind the image of a JPEG.
        frames = 1 if format is JPEG else getattr(image, "n_frames", 1)
        bits = bits_of(data, image)
        return rgb, ImageFacts(format.name, image.mode, bits, alpha, frames, color_problem)


@dataclass(frozen=True)
class MaskFacts:
    """Properties of a mask's file.

    Attributes:
        brightest: Its highest value, of 255.
        is_alpha: Whether its alpha channel is the mask.
        is_colored: Whether it has colors, of which the luminance is the mask.
    """

    brightest: int
    is_alpha: bool
    is_colored: bool


def decode_mask(data: bytes) -> tuple[Image.Image, MaskFacts]:
    """Return the mask in a file's bytes, upright: its alpha channel if that varies, or luminance.

    Values are weights, not colors: a profile changes nothing.

    Raises:
        UnreadableImageError: The bytes are not a supported image.
    """
    with loaded(data) as image:
        luminance, chroma = Image.new("L", image.size), 0
        alpha = Image.new("L", image.size) if image.has_transparency_data else None
        for box in _strips(image.size):
            colors, opacity = _split(image.crop(box))
            if alpha is not None and opacity is not None:
                alpha.paste(opacity, box)
            if colors.mode != "L":
                colors = colors.convert("RGB")
                chroma = max(chroma, _chroma(colors))
                colors = colors.convert("L")
            luminance.paste(colors, box)
    least, most = (255, 255) if alpha is None else values_of(alpha)
    if most == 0:
        raise UnreadableImageError("is entirely transparent")
    if alpha is not None and least < most:
        return alpha, MaskFacts(brightest=most, is_alpha=True, is_colored=False)
    brightest = values_of(luminance)[1]
    return luminance, MaskFacts(brightest, is_alpha=False, is_colored=chroma >= _MIN_CHROMA)


def image_digest(image: Image.Image) -> str:
    """Return the SHA-256 of the mode, size and pixels of an image or mask, in hex."""
    digest = hashlib.sha256(f"{image.mode} {image.width}x{image.height}\n".encode())
    # A PPM has the pixels behind its header, and is written in pieces that stay in the processor's
    # cache; ``tobytes`` would copy a large image twice.
    image.save(_Rest(digest.update, len(f"P6\n{image.width} {image.height}\n255\n")), "PPM")
    return digest.hexdigest()


class _Rest(io.BytesIO):
    """File that passes on what is written to it, and keeps nothing.

    Args:
        receive: Receives the bytes.
        skipped: The number of bytes at the start that are not passed on.
    """

    def __init__(self, receive: Callable[[memoryview], object], skipped: int) -> None:
        super().__init__()
        self._receive, self._skipped = receive, skipped

    def write(self, data: Any) -> int:
        """Pass bytes on."""
        part = memoryview(data)
        self._receive(part[self._skipped :])
        self._skipped = max(0, self._skipped - len(part))
        return len(part)


def _rgb(
    image: Image.Image, conversion: ImageCms.ImageCmsTransform | None
) -> tuple[Image.Image, tuple[int, int]]:
    """Return an image in sRGB, on white, and the range of its alpha channel."""
    if not image.has_transparency_data and not image.mode.startswith("I"):
        if conversion is None:
            return image if image.mode == "RGB" else image.convert("RGB"), (255, 255)
        if image.mode == "RGB":
            return conversion.apply_in_place(image), (255, 255)
    if image.width * image.height <= _STRIP_PIXELS:
        return _rgb_strip(image, conversion)
    whole, least, most = Image.new("RGB", image.size), 255, 0
    for box in _strips(image.size):
        strip, (darkest, brightest) = _rgb_strip(image.crop(box), conversion)
        whole.paste(strip, box)
        least, most = min(least, darkest), max(most, brightest)
    return whole, (least, most)


def _rgb_strip(
    strip: Image.Image, conversion: ImageCms.ImageCmsTransform | None
) -> tuple[Image.Image, tuple[int, int]]:
    colors, alpha = _split(strip)
    if conversion is not None:
        colors = conversion.apply(colors.convert(conversion.input_mode))
    if colors.mode != "RGB":
        colors = colors.convert("RGB")
    if alpha is None or values_of(alpha)[0] == 255:
        return colors, (255, 255)
    white = Image.new("RGB", colors.size, "white")
    white.paste(colors, mask=alpha)
    return white, values_of(alpha)


def _strips(size: tuple[int, int]) -> Iterator[tuple[int, int, int, int]]:
    """Yield boxes of rows: whole copies of a transparent image would take 20 bytes a pixel."""
    width, height = size
    rows = max(1, _STRIP_PIXELS // width)
    for top in range(0, height, rows):
        yield 0, top, width, min(top + rows, height)


def _split(image: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """Return an image in 8 bits, and its alpha channel if it has one."""
    if image.mode.startswith("I"):
        # 16 bits a pixel: Pillow's own conversion clips every value above 255 to white.
        image = image.convert("I").point(lambda value: value * SCALE_16_TO_8).convert("L")
    if not image.has_transparency_data:
        return image, None
    layers = image.convert("RGBA")
    return layers.convert("RGB"), layers.getchannel("A")


def _chroma(rgb: Image.Image) -> int:
    """Return the largest difference between two channels of a pixel."""
    red, green, blue = rgb.split()
    pairs = ((red, green), (green, blue), (blue, red))
    return max(values_of(ImageChops.difference(one, other))[1] for one, other in pairs)
