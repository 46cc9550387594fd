import hashlib
import struct
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import pytest
from PIL import Image

from tasks.data.decoding.image_file import UnreadableImageError
from tasks.data.decoding.images import decode_image, decode_mask, image_digest, open_image
from tests.tasks.data.hostile import chunk, encoded, png


@pytest.fixture
def image() -> Image.Image:
    image = Image.radial_gradient("L").resize((40, 24)).convert("RGB")
    image.putpixel((0, 0), (255, 0, 0))
    return image


def test_lossless_formats_have_the_same_digest(
    image: Image.Image,
) -> None:
    forms = [("PNG", {}), ("BMP", {}), ("WEBP", {"lossless": True})]
    digests = {image_digest(open_image(encoded(image, k, **o))) for k, o in forms}
    assert digests == {image_digest(image)}


@pytest.mark.parametrize("size", [(1, 1), (3, 70000), (70000, 3), (640, 480)])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_a_digest_covers_mode_size_and_pixels(mode: str, size: tuple[int, int]) -> None:
    image = Image.radial_gradient("L").resize(size).convert(mode)
    header = f"{mode} {size[0]}x{size[1]}\n".encode()
    assert image_digest(image) == hashlib.sha256(header + image.tobytes()).hexdigest()


def test_other_pixels_or_another_size_have_another_digest(image: Image.Image) -> None:
    changed = image.copy()
    changed.putpixel((3, 3), (1, 2, 3))
    turned = Image.frombytes("RGB", (24, 40), image.tobytes())
    assert len({image_digest(p) for p in (image, changed, turned)}) == 3


@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_image_is_rotated_upright(image: Image.Image, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    upright = open_image(encoded(image, "PNG", exif=exif))
    assert upright.size == ((24, 40) if orientation >= 5 else (40, 24))
    corners = {1: (0, 0), 2: (39, 0), 3: (39, 23), 4: (0, 23)}
    corners |= {5: (0, 0), 6: (23, 0), 7: (23, 39), 8: (0, 39)}
    assert upright.getpixel(corners[orientation]) == (255, 0, 0)


@pytest.mark.parametrize("mode", ["L", "P", "1", "LA", "RGBA"])
def test_every_mode_becomes_rgb(image: Image.Image, mode: str) -> None:
    assert open_image(encoded(image.convert(mode), "PNG")).mode == "RGB"


def test_cmyk_and_16_bit_images_become_rgb(image: Image.Image) -> None:
    assert open_image(encoded(image.convert("CMYK"), "JPEG")).mode == "RGB"
    deep = Image.new("I;16", (8, 8), 40000)
    assert open_image(encoded(deep, "PNG")).mode == "RGB"


def test_a_16_bit_image_keeps_its_brightness() -> None:
    deep = Image.new("I;16", (8, 8), 40000)
    assert open_image(encoded(deep, "PNG")).getpixel((0, 0)) == (155, 155, 155)


def test_transparency_becomes_white() -> None:
    clear = encoded(Image.new("RGBA", (8, 8), (10, 20, 30, 0)), "PNG")
    image, facts = decode_image(clear)
    assert image.getpixel((0, 0)) == (255, 255, 255)
    assert facts.alpha == (0, 0)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_is_judged_by_its_values(image: Image.Image, mode: str) -> None:
    opaque = image.convert(mode)
    # A color that no pixel has is transparent.
    options = {"transparency": 255} if mode == "P" else {}
    result, facts = decode_image(encoded(opaque, "PNG", **options))
    assert facts.alpha == (255, 255)
    assert image_digest(result) == image_digest(opaque.convert("RGB"))


def test_a_palette_may_be_partly_transparent() -> None:
    few = Image.new("P", (2, 1))
    few.putpalette([200, 0, 0, 0, 0, 200])
    few.putpixel((1, 0), 1)
    result, facts = decode_image(encoded(few, "PNG", transparency=bytes([255, 51])))
    assert [result.getpixel((x, 0)) for x in (0, 1)] == [(200, 0, 0), (204, 204, 244)]
    assert facts.alpha == (51, 255)


@pytest.mark.parametrize(("bits", "color"), [(2, 0), (4, 0), (8, 0), (16, 0), (8, 2), (16, 2)])
def test_a_transparent_color_is_scaled_as_pixels_are(bits: int, color: int) -> None:
    value = struct.pack(">H", 2 ** (bits - 1) + (bits > 8))
    pixels = {2: b"\xaa", 4: b"\x88", 8: b"\x80", 16: b"\x80\x01"}[bits] * (3 if color else 1)
    rows = b"".join(b"\0" + pixels * (4 * min(bits, 8) // 8) for _ in range(4))
    header = struct.pack(">IIBBBBB", 4, 4, bits, color, 0, 0, 0)
    transparent = chunk(b"tRNS", value * (3 if color else 1))
    body = chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + transparent + body
    assert decode_image(data)[1].alpha == (0, 0)


@pytest.mark.parametrize("color", [0, 2, 4, 6])
def test_16_bits_of_a_png_are_reported(color: int) -> None:
    assert decode_image(png(8, bits=16, color=color))[1].bits == 16


TEXT = b"prompt\0" + b"a cat " * 500_000
PACKED = zlib.compress(b"a cat " * 500_000)
ROTATED = b"""<x:xmpmeta xmlns:x="adobe:ns:meta/" tiff:Orientation="6"></x:xmpmeta>"""


@pytest.mark.parametrize(
    ("name", "body", "is_rotated"),
    [
        (b"tEXt", TEXT, False),
        (b"zTXt", b"prompt\0\0" + PACKED, False),
        (b"iTXt", b"prompt\0\1\0\0\0" + PACKED, False),
        (b"zTXt", b"", False),
        (b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + bytes(2**20), False),
        (b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + ROTATED, True),
    ],
)
@pytest.mark.parametrize("place", [33, -12])
def test_a_text_of_any_size_costs_no_pixel(
    image: Image.Image, name: bytes, body: bytes, is_rotated: bool, place: int
) -> None:
    whole = encoded(image, "PNG")
    result = open_image(whole[:place] + chunk(name, body) * 30 + whole[place:])
    assert image_digest(result) == image_digest(
        image.rotate(-90, expand=True) if is_rotated else image
    )


def test_an_animated_png_is_its_first_frame(image: Image.Image) -> None:
    frames = [Image.new("RGB", image.size, "blue")] * 2
    moving = encoded(image, "PNG", save_all=True, append_images=frames)
    result, facts = decode_image(moving)
    assert image_digest(result) == image_digest(image)
    assert facts.frames == 3


def square(mode: str, ground: Any, subject: Any) -> Image.Image:
    """Return an image of 8x8, with a subject of 4x4 in its middle."""
    image = Image.new(mode, (8, 8), ground)
    image.paste(subject, (2, 2, 6, 6))
    return image


@pytest.mark.parametrize(
    ("mask", "values", "is_alpha"),
    [
        (square("L", 0, 255), (0, 255), False),
        (square("1", 0, 1), (0, 255), False),
        (square("RGB", "black", "white"), (0, 255), False),
        # A cut-out: its colors do not count.
        (square("RGBA", (255, 255, 255, 0), (9, 9, 9, 255)), (0, 255), True),
        (square("LA", (255, 0), (9, 128)), (0, 128), True),
        # All as opaque: its colors count, also where that is half.
        (square("RGBA", (0, 0, 0, 255), (255, 255, 255, 255)), (0, 255), False),
        (square("RGBA", (0, 0, 0, 128), (255, 255, 255, 128)), (0, 255), False),
        (square("I;16", 0, 65535), (0, 255), False),
    ],
)
def test_a_mask_is_its_alpha_where_that_varies(
    mask: Image.Image, values: tuple[int, int], is_alpha: bool
) -> None:
    gray, facts = decode_mask(encoded(mask, "PNG"))
    assert (gray.mode, gray.getpixel((0, 0)), gray.getpixel((4, 4))) == ("L", *values)
    assert (facts.is_alpha, facts.is_colored) == (is_alpha, False)
    assert facts.brightest == values[1]


def test_colors_of_a_mask_are_found() -> None:
    assert decode_mask(encoded(square("RGB", "black", "red"), "PNG"))[1].is_colored
    assert not decode_mask(encoded(square("RGB", "black", "white"), "JPEG"))[1].is_colored
    with pytest.raises(UnreadableImageError, match="is entirely transparent"):
        decode_mask(encoded(Image.new("RGBA", (8, 8), (9, 9, 9, 0)), "PNG"))


def test_the_first_frame_of_an_animation_is_used() -> None:
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue")]
    moving = encoded(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True)
    assert open_image(moving).getpixel((4, 4)) == (255, 0, 0)


@pytest.mark.parametrize("kept", [0, 10, 0.3, 0.9])
def test_a_truncated_image_is_refused(image: Image.Image, kept: float) -> None:
    for kind in ("PNG", "JPEG", "WEBP"):
        whole = encoded(image, kind)
        part = whole[: int(kept * len(whole)) if kept < 1 else int(kept)]
        with pytest.raises(UnreadableImageError):
            open_image(part)


def test_a_decompression_bomb_is_refused_without_decoding_it() -> None:
    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    with pytest.raises(UnreadableImageError, match="pixels"):
        open_image(b"\x89PNG\r\n\x1a\n" + body)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_damaged_exif_raises_only_our_error(image: Image.Image, kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010E] = "a description"
    whole = encoded(image, kind, exif=exif)
    start = whole.index(b"MM\0*") if b"MM\0*" in whole else whole.index(b"II*\0")
    for position in range(start, min(start + 60, len(whole))):
        for value in (0, 1, 2, 5, 10, 255):
            damaged = bytearray(whole)
            damaged[position] = value
            with suppress(UnreadableImageError), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                open_image(bytes(damaged))


def test_a_large_image_below_the_limit_is_read_without_a_warning() -> None:
    large = encoded(Image.new("1", (10000, 9000)), "PNG")
    assert decode_image(large)[0].size == (10000, 9000)


def test_threads_do_not_change_warning_filters(
    image: Image.Image,
) -> None:
    data = encoded(image, "PNG")
    before = list(warnings.filters)
    with ThreadPoolExecutor(8) as pool:
        digests = set(pool.map(lambda _: image_digest(open_image(data)), range(500)))
    assert digests == {image_digest(image)}
    assert list(warnings.filters) == before
