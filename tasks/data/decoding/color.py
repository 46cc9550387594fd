"""Conversion of colors to sRGB, by the profile (ICC.1) that an image embeds."""

import io
import struct
from contextlib import suppress
from functools import lru_cache
from itertools import product

from PIL import Image, ImageChops, ImageCms

PILLOW_ERRORS = (
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
"""What Pillow raises for invalid bytes. struct.error: in EXIF data, which rotating rewrites."""
MAX_PROFILE_BYTES = 4 * 2**20
"""Twice the size of a printer's profile, the largest kind."""
# The modes that littleCMS reads, by the colors that a profile describes.
_MODES = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}
_GRAY_MODES = frozenset({"1", "L", "LA", "I", "I;16"})
# Scanners, monitors, printers and color spaces; the other classes describe no image.
_CLASSES = frozenset({"scnr", "mntr", "prtr", "spac"})
# A chain of any number of functions for each color, which no camera or editor embeds.
_UNBOUNDED = b"mpet"
# Of 255: what rounding changes. Most embedded profiles are sRGB's; their pixels stay as they are.
_MAX_ROUNDING = 1
# Of 255: a profile that leaves less contrast between all colors is damaged.
_MIN_CONTRAST = 32
_COLORS = bytes(value for color in product(range(0, 256, 17), repeat=3) for value in color)
_UNUSABLE = "has a color profile that is damaged, or too large"
_SRGB_GAMMA = 1 / 2.2
_SRGB_CHROMATICITY = (0.3127, 0.329, 0.64, 0.33, 0.3, 0.6, 0.15, 0.06)
# Codes of ITU-T H.273: "unspecified", sRGB's, and transfer functions that are shown as sRGB's.
_SRGB_PRIMARIES, _SRGB_TRANSFERS = (1, 2), (1, 2, 6, 13, 14, 15)
# Of a BMP of version 5, whose profile Pillow does not read.
_BMP_COLOR_SPACE, _BMP_EMBEDDED = 70, b"DEBM"
# Where a file has such codes: before its pixels.
_CODES_WITHIN = 2**16
# Tags and values of EXIF (CIPA DC-008).
_EXIF_IFD, _INTEROPERABILITY_IFD = 0x8769, 0xA005
_COLOR_SPACE, _UNCALIBRATED = 0xA001, 0xFFFF
_INTEROPERABILITY_INDEX, _ADOBE_RGB = 1, "R03"


class ColorError(ValueError):
    """An image's colors cannot be converted; the message says why."""


def srgb_conversion(image: Image.Image, data: bytes) -> ImageCms.ImageCmsTransform | None:
    """Return the conversion of an image's colors to sRGB; None if they are sRGB's already.

    Args:
        image: The image, whose pixels need not be loaded.
        data: Its file.

    Raises:
        ColorError: The profile is unusable, or the file declares other colors without one.
    """
    if "icc_profile" in image.info:
        return _conversion(image.info["icc_profile"] or b"", image.mode)
    if data[:2] == b"BM" and data[_BMP_COLOR_SPACE : _BMP_COLOR_SPACE + 4] == _BMP_EMBEDDED:
        start, size = struct.unpack("<II", data[126:134])
        return _conversion(data[14 + start : 14 + start + size], image.mode)
    if image.mode == "CMYK":
        raise ColorError("is CMYK, without a color profile")
    if _is_adobe_rgb(image):
        raise ColorError("is in Adobe RGB by its EXIF data, without a color profile")
    if not _has_srgb_gamma(image) or not _has_srgb_codes(data):
        raise ColorError("declares another color space than sRGB, without a color profile")
    return None


def values_of(band: Image.Image) -> tuple[int, int]:
    """Return the least and the most value of an image of one band of 8 bits."""
    least, most = band.getextrema()
    if not isinstance(least, int) or not isinstance(most, int):
        raise TypeError("the image has several bands")
    return least, most


@lru_cache(maxsize=8)
def _conversion(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    if len(profile) > MAX_PROFILE_BYTES or _UNBOUNDED in profile:
        raise ColorError(_UNUSABLE)
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        space, kind = source.profile.xcolor_space.strip(), source.profile.device_class
    except PILLOW_ERRORS as error:
        raise ColorError(_UNUSABLE) from error
    if kind not in _CLASSES or not _describes(space, mode):
        raise ColorError("has a color profile for another kind of images")
    try:
        target = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
        conversion = ImageCms.ImageCmsTransform(source, target, _MODES[space], "RGB")
    except PILLOW_ERRORS as error:
        raise ColorError(_UNUSABLE) from error
    return None if _is_identity(conversion) else conversion


def _describes(space: str, mode: str) -> bool:
    """Return whether a profile of some colors can be that of an image."""
    if mode == "CMYK" or space == "CMYK":
        return mode == space
    return space == "RGB" or (space == "GRAY" and mode in _GRAY_MODES)


def _is_identity(conversion: ImageCms.ImageCmsTransform) -> bool:
    """Return whether a conversion changes colors by no more than rounding.

    Raises:
        ColorError: It makes one color of all.
    """
    mode = conversion.input_mode
    colors = Image.frombytes(mode, (len(_COLORS) // 12, 12 // len(mode)), _COLORS)
    converted = conversion.apply(colors)
    ranges = map(values_of, converted.split())
    if all(most - least < _MIN_CONTRAST for least, most in ranges):
        raise ColorError(_UNUSABLE)
    changes = ImageChops.difference(converted, colors.convert("RGB"))
    return all(values_of(band)[1] <= _MAX_ROUNDING for band in changes.split())


def _is_adobe_rgb(image: Image.Image) -> bool:
    """Return whether a camera's file names Adobe RGB, as they do without a profile."""
    # Damaged metadata names nothing.
    with suppress(*PILLOW_ERRORS):
        exif = image.getexif()
        if exif and exif.get_ifd(_EXIF_IFD).get(_COLOR_SPACE) == _UNCALIBRATED:
            names = exif.get_ifd(_INTEROPERABILITY_IFD)
            return str(names.get(_INTEROPERABILITY_INDEX)).strip("\0 ") == _ADOBE_RGB
    return False


def _has_srgb_gamma(image: Image.Image) -> bool:
    """Return whether a PNG declares sRGB's gamma and primaries, or nothing."""
    if "srgb" in image.info:
        return True
    gamma = image.info.get("gamma", _SRGB_GAMMA)
    chromaticity = image.info.get("chromaticity", _SRGB_CHROMATICITY)
    primaries = zip(chromaticity, _SRGB_CHROMATICITY, strict=False)
    return abs(gamma - _SRGB_GAMMA) < 0.02 and all(abs(a - b) < 0.01 for a, b in primaries)


def _has_srgb_codes(data: bytes) -> bool:
    """Return whether a PNG (cICP) or HEIF file (colr) declares sRGB's codes, or none."""
    if data[:4] == b"\x89PNG" and (at := data.find(b"\0\0\0\4cICP", 0, _CODES_WITHIN)) > 0:
        primaries, transfer = data[at + 8], data[at + 9]
    elif data[4:8] == b"ftyp" and (at := data.find(b"colrnclx", 0, _CODES_WITHIN)) > 0:
        primaries, transfer = struct.unpack(">HH", data[at + 8 : at + 12])
    else:
        return True
    return primaries in _SRGB_PRIMARIES and transfer in _SRGB_TRANSFERS
