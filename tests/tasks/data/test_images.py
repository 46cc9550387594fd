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
    UnreadableImageError,
    image_digest,
    image_facts,
    open_image,
)


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


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
    assert open_image(clear).getpixel((0, 0)) == (255, 255, 255)
    assert image_facts(clear).is_transparent
    assert not image_facts(encoded(Image.new("RGB", (8, 8)), "PNG")).is_transparent


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
    def chunk(name: bytes, body: bytes) -> bytes:
        crc = zlib.crc32(name + body)
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", crc)

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
    assert not image_facts(large).is_transparent


def test_threads_do_not_change_warning_filters(
    image: Image.Image,
) -> None:
    data = encoded(image, "PNG")
    before = list(warnings.filters)
    with ThreadPoolExecutor(8) as pool:
        digests = set(pool.map(lambda _: image_digest(open_image(data)), range(500)))
    assert digests == {image_digest(image)}
    assert list(warnings.filters) == before
