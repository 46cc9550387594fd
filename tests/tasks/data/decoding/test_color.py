import io
import struct

import pytest
from PIL import Image, ImageChops, ImageCms

from tasks.data.decoding.color import MAX_PROFILE_BYTES, values_of
from tasks.data.decoding.images import decode_image, image_digest, open_image, open_mask
from tests.tasks.data.hostile import chunk, encoded
from tests.tasks.data.profiles import (
    ADOBE_RGB,
    DISPLAY_P3,
    cmyk_profile,
    gray_profile,
    profile,
    rgb_profile,
)
from tests.tasks.data.test_formats import HEIC

SRGB = ImageCms.createProfile("sRGB")
COLORS = Image.merge(
    "RGB",
    [
        Image.linear_gradient("L"),
        Image.linear_gradient("L").rotate(90),
        Image.radial_gradient("L"),
    ],
)


def difference(one: Image.Image, other: Image.Image) -> int:
    return max(values_of(band)[1] for band in ImageChops.difference(one, other).split())


def converted(image: Image.Image, icc: bytes) -> Image.Image:
    """Convert as littleCMS does, whole."""
    result = ImageCms.profileToProfile(image, io.BytesIO(icc), SRGB, outputMode="RGB")
    assert result is not None
    return result


@pytest.mark.parametrize("icc", [DISPLAY_P3, ADOBE_RGB], ids=["display-p3", "adobe-rgb"])
@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_a_profile_is_converted_to_srgb(kind: str, icc: bytes) -> None:
    options = {"lossless": True} if kind == "WEBP" else {}
    image, facts = decode_image(encoded(COLORS, kind, icc_profile=icc, **options))
    assert difference(image, converted(COLORS, icc)) <= 1
    assert difference(image, COLORS) > 40
    assert facts.color_problem == ""


def test_a_profile_of_srgb_changes_no_pixel() -> None:
    icc = ImageCms.ImageCmsProfile(SRGB).tobytes()
    assert image_digest(open_image(encoded(COLORS, "PNG", icc_profile=icc))) == image_digest(COLORS)


def test_a_rotated_image_is_converted_too() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(COLORS, "JPEG", icc_profile=DISPLAY_P3, exif=exif, quality=100, subsampling=0)
    upright = Image.open(io.BytesIO(data)).rotate(-90)
    assert difference(open_image(data), converted(upright, DISPLAY_P3)) <= 1


@pytest.mark.parametrize("mode", ["L", "LA", "I;16", "1"])
def test_the_profile_of_a_gray_image_is_converted(mode: str) -> None:
    gray = Image.linear_gradient("L")
    image = gray.convert(mode)
    if mode == "I;16":
        image = gray.convert("I").point(lambda value: value * 257).convert("I;16")
    for icc, source in ((gray_profile(1.0), "L"), (rgb_profile_of_gamma_1(), "RGB")):
        result, facts = decode_image(encoded(image, "PNG", icc_profile=icc))
        base = gray.convert("1") if mode == "1" else gray
        assert difference(result, converted(base.convert(source), icc)) <= 1
        assert facts.color_problem == ""


def rgb_profile_of_gamma_1() -> bytes:
    colorants = ((0.4361, 0.2225, 0.0139), (0.3851, 0.7169, 0.0971), (0.1431, 0.0606, 0.7141))
    return rgb_profile(colorants, gamma=1.0)


def test_the_profile_of_a_cmyk_image_is_converted() -> None:
    image = COLORS.convert("CMYK")
    data = encoded(image, "JPEG", icc_profile=cmyk_profile(), quality=100)
    result, facts = decode_image(data)
    assert difference(result, converted(Image.open(io.BytesIO(data)), cmyk_profile())) <= 1
    assert facts.color_problem == ""
    assert decode_image(encoded(image, "JPEG"))[1].color_problem.startswith("is CMYK, without")


def test_colors_are_converted_before_the_background_is_added() -> None:
    clear = COLORS.convert("RGBA")
    clear.putalpha(Image.linear_gradient("L"))
    image, facts = decode_image(encoded(clear, "PNG", icc_profile=DISPLAY_P3))
    expected = Image.new("RGB", COLORS.size, "white")
    expected.paste(converted(COLORS, DISPLAY_P3), mask=Image.linear_gradient("L"))
    assert difference(image, expected) <= 1
    assert facts.alpha == (0, 255)


def test_a_palette_is_converted() -> None:
    few = COLORS.quantize(16)
    image = open_image(encoded(few, "PNG", icc_profile=DISPLAY_P3))
    assert difference(image, converted(few.convert("RGB"), DISPLAY_P3)) <= 1


def test_large_images_are_converted_in_strips() -> None:
    large = COLORS.resize((1500, 1500)).convert("RGBA")
    image = open_image(encoded(large, "PNG", icc_profile=DISPLAY_P3, compress_level=1))
    assert difference(image, converted(large.convert("RGB"), DISPLAY_P3)) <= 1


@pytest.mark.parametrize(
    ("mode", "icc", "reason"),
    [
        ("RGB", b"garbage", "damaged"),
        ("RGB", DISPLAY_P3[:200], "damaged"),
        ("RGB", DISPLAY_P3[:128] + b"\xff" * 400, "damaged"),
        ("RGB", rgb_profile(((0, 0, 0),) * 3), "damaged"),
        ("RGB", cmyk_profile(), "another kind"),
        ("RGB", gray_profile(1.8), "another kind"),
        ("CMYK", DISPLAY_P3, "another kind"),
        ("RGB", profile(b"Lab ", {}), "another kind"),
        ("RGB", profile(b"RGB ", {}, kind=b"link"), "another kind"),
        ("RGB", DISPLAY_P3 + bytes(MAX_PROFILE_BYTES), "too large"),
        ("RGB", DISPLAY_P3 + b"mpet", "too large"),
    ],
)
def test_an_unusable_profile_changes_nothing(mode: str, icc: bytes, reason: str) -> None:
    image = COLORS.convert(mode)
    for kind in ("PNG", "JPEG") if mode == "RGB" else ("JPEG",):
        data = encoded(image, kind, icc_profile=icc)
        result, facts = decode_image(data)
        assert reason in facts.color_problem
        assert difference(result, Image.open(io.BytesIO(encoded(image, kind))).convert("RGB")) == 0


def with_chunk(name: bytes, body: bytes) -> bytes:
    """Return a PNG with another chunk after its header."""
    data = encoded(COLORS, "PNG")
    return data[:33] + chunk(name, body) + data[33:]


@pytest.mark.parametrize(
    "body", [b"", b"name", b"name\0", b"name\0\1x", b"name\0\0not zlib", b"\0\0x\x9c"]
)
def test_a_damaged_profile_of_a_png_costs_no_pixel(body: bytes) -> None:
    image, facts = decode_image(with_chunk(b"iCCP", body))
    assert facts.color_problem == "has a color profile that is damaged, or too large"
    assert image_digest(image) == image_digest(COLORS)


SRGB_PRIMARIES = (31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000)
P3_PRIMARIES = (31270, 32900, 68000, 32000, 26500, 69000, 15000, 6000)


@pytest.mark.parametrize(
    ("name", "body", "is_srgb"),
    [
        (b"gAMA", struct.pack(">I", 45455), True),
        (b"gAMA", struct.pack(">I", 100000), False),
        (b"cICP", bytes([1, 13, 0, 1]), True),
        (b"cICP", bytes([9, 16, 0, 1]), False),
        (b"cHRM", struct.pack(">8I", *SRGB_PRIMARIES), True),
        (b"cHRM", struct.pack(">8I", *P3_PRIMARIES), False),
    ],
)
def test_other_colors_without_a_profile_are_reported(
    name: bytes, body: bytes, is_srgb: bool
) -> None:
    problem = decode_image(with_chunk(name, body))[1].color_problem
    assert (problem == "") == is_srgb
    assert is_srgb or problem.startswith("declares another color space than sRGB")


def test_adobe_rgb_of_a_camera_is_reported() -> None:
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0xA001] = 0xFFFF
    exif.get_ifd(0x8769)[0xA005] = {1: "R03"}
    bare = encoded(COLORS, "JPEG", exif=exif)
    assert "Adobe RGB" in decode_image(bare)[1].color_problem
    full = encoded(COLORS, "JPEG", exif=exif, icc_profile=ADOBE_RGB)
    assert decode_image(full)[1].color_problem == ""


def test_a_profile_of_a_heic_is_converted() -> None:
    at = HEIC.index(b"colrnclx") - 4
    box = struct.pack(">I", 12 + len(DISPLAY_P3)) + b"colrprof" + DISPLAY_P3
    data = HEIC[:at] + box + HEIC[at + 19 :]
    growth = len(box) - 19
    for outer in (b"meta", b"iprp", b"ipco"):
        start = data.index(outer) - 4
        size = int.from_bytes(data[start : start + 4]) + growth
        data = data[:start] + struct.pack(">I", size) + data[start + 4 :]
    pixels = HEIC.index(b"mdat") + 4
    data = data.replace(struct.pack(">I", pixels), struct.pack(">I", pixels + growth), 1)
    result, facts = decode_image(data)
    assert difference(result, converted(open_image(HEIC), DISPLAY_P3)) <= 1
    assert (facts.color_problem, facts.bits) == ("", 8)


@pytest.mark.parametrize(("codes", "is_srgb"), [((1, 13), True), ((9, 16), False)])
def test_other_colors_of_a_heic_are_reported(codes: tuple[int, int], is_srgb: bool) -> None:
    data = HEIC.replace(b"colrnclx\0\1\0\x0d", b"colrnclx" + struct.pack(">HH", *codes))
    assert (decode_image(data)[1].color_problem == "") == is_srgb


def test_a_profile_of_an_avif_is_converted() -> None:
    data = encoded(COLORS, "AVIF", icc_profile=DISPLAY_P3, quality=100)
    expected = converted(Image.open(io.BytesIO(data)).convert("RGB"), DISPLAY_P3)
    assert difference(open_image(data), expected) <= 1


def test_a_profile_of_a_bmp_is_converted() -> None:
    old = encoded(COLORS, "BMP")
    header = bytearray(old[14:54] + bytes(84))
    header[:4] = struct.pack("<I", 124)
    header[56:60] = b"DEBM"
    header[112:120] = struct.pack("<II", 124 + len(old) - 54, len(DISPLAY_P3))
    start = b"BM" + struct.pack("<III", len(old) + 84 + len(DISPLAY_P3), 0, 138)
    data = start + bytes(header) + old[54:] + DISPLAY_P3
    assert difference(open_image(data), converted(COLORS, DISPLAY_P3)) <= 1


def test_a_mask_is_not_converted() -> None:
    gray = Image.linear_gradient("L")
    mask = open_mask(encoded(gray, "PNG", icc_profile=gray_profile(1.0)))
    assert image_digest(mask) == image_digest(gray)
