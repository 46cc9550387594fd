import hashlib
import io
import struct
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import pytest
from PIL import Image

from tasks.data.images import (
    UnreadablePictureError,
    open_picture,
    picture_digest,
    picture_facts,
)


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.fixture
def picture() -> Image.Image:
    image = Image.radial_gradient("L").resize((40, 24)).convert("RGB")
    image.putpixel((0, 0), (255, 0, 0))
    return image


def test_the_same_pixels_have_the_same_digest_in_every_lossless_format(
    picture: Image.Image,
) -> None:
    forms = [("PNG", {}), ("BMP", {}), ("WEBP", {"lossless": True})]
    digests = {picture_digest(open_picture(encoded(picture, k, **o))) for k, o in forms}
    assert digests == {picture_digest(picture)}


@pytest.mark.parametrize("size", [(1, 1), (3, 70000), (70000, 3), (640, 480)])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_a_digest_is_of_the_kind_the_size_and_all_pixels(mode: str, size: tuple[int, int]) -> None:
    picture = Image.radial_gradient("L").resize(size).convert(mode)
    header = f"{mode} {size[0]}x{size[1]}\n".encode()
    assert picture_digest(picture) == hashlib.sha256(header + picture.tobytes()).hexdigest()


def test_other_pixels_or_another_size_have_another_digest(picture: Image.Image) -> None:
    changed = picture.copy()
    changed.putpixel((3, 3), (1, 2, 3))
    turned = Image.frombytes("RGB", (24, 40), picture.tobytes())
    assert len({picture_digest(p) for p in (picture, changed, turned)}) == 3


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_is_turned_upright(picture: Image.Image, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    upright = open_picture(encoded(picture, "PNG", exif=exif))
    assert upright.size == ((24, 40) if orientation >= 5 else (40, 24))
    corners = {1: (0, 0), 2: (39, 0), 3: (39, 23), 4: (0, 23)}
    corners |= {5: (0, 0), 6: (23, 0), 7: (23, 39), 8: (0, 39)}
    assert upright.getpixel(corners[orientation]) == (255, 0, 0)


@pytest.mark.parametrize("mode", ["L", "P", "1", "LA", "RGBA"])
def test_every_mode_becomes_rgb(picture: Image.Image, mode: str) -> None:
    assert open_picture(encoded(picture.convert(mode), "PNG")).mode == "RGB"


def test_cmyk_and_16_bit_pictures_become_rgb(picture: Image.Image) -> None:
    assert open_picture(encoded(picture.convert("CMYK"), "JPEG")).mode == "RGB"
    deep = Image.new("I;16", (8, 8), 40000)
    assert open_picture(encoded(deep, "PNG")).mode == "RGB"


def test_a_16_bit_picture_keeps_its_brightness() -> None:
    deep = Image.new("I;16", (8, 8), 40000)
    assert open_picture(encoded(deep, "PNG")).getpixel((0, 0)) == (155, 155, 155)


def test_transparency_is_put_on_white_and_told() -> None:
    clear = encoded(Image.new("RGBA", (8, 8), (10, 20, 30, 0)), "PNG")
    assert open_picture(clear).getpixel((0, 0)) == (255, 255, 255)
    assert picture_facts(clear).is_transparent
    assert not picture_facts(encoded(Image.new("RGB", (8, 8)), "PNG")).is_transparent


def test_of_an_animation_the_first_frame_is_taken() -> None:
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue")]
    moving = encoded(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True)
    assert open_picture(moving).getpixel((4, 4)) == (255, 0, 0)


@pytest.mark.parametrize("kept", [0, 10, 0.3, 0.9])
def test_a_broken_off_picture_is_refused(picture: Image.Image, kept: float) -> None:
    for kind in ("PNG", "JPEG", "WEBP"):
        whole = encoded(picture, kind)
        part = whole[: int(kept * len(whole)) if kept < 1 else int(kept)]
        with pytest.raises(UnreadablePictureError):
            open_picture(part)


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "ICO", "PPM", "PDF", "EPS"])
def test_a_format_that_is_not_ours_is_refused(picture: Image.Image, kind: str) -> None:
    with pytest.raises(UnreadablePictureError, match="is no JPEG, PNG, WEBP, BMP"):
        open_picture(encoded(picture, kind))


def test_a_decompression_bomb_is_refused_without_decoding_it() -> None:
    def chunk(name: bytes, body: bytes) -> bytes:
        crc = zlib.crc32(name + body)
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", crc)

    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    with pytest.raises(UnreadablePictureError, match="pixels"):
        open_picture(b"\x89PNG\r\n\x1a\n" + body)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_a_damaged_exif_block_never_escapes_as_another_error(
    picture: Image.Image, kind: str
) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010E] = "a description"
    whole = encoded(picture, kind, exif=exif)
    start = whole.index(b"MM\0*") if b"MM\0*" in whole else whole.index(b"II*\0")
    for position in range(start, min(start + 60, len(whole))):
        for value in (0, 1, 2, 5, 10, 255):
            damaged = bytearray(whole)
            damaged[position] = value
            with suppress(UnreadablePictureError), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                open_picture(bytes(damaged))


def test_a_large_picture_below_the_limit_is_read_without_a_warning() -> None:
    large = encoded(Image.new("1", (10000, 9000)), "PNG")
    assert not picture_facts(large).is_transparent


def test_reading_in_threads_leaves_the_processs_warning_filters_alone(
    picture: Image.Image,
) -> None:
    data = encoded(picture, "PNG")
    before = list(warnings.filters)
    with ThreadPoolExecutor(8) as pool:
        digests = set(pool.map(lambda _: picture_digest(open_picture(data)), range(500)))
    assert digests == {picture_digest(picture)}
    assert list(warnings.filters) == before
