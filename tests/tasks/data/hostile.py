"""Files that are small, and take much time or memory to read."""

import io
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

from tests.tasks.data.profiles import DISPLAY_P3, cmyk_profile


def png(
    side: int, *, bits: int, color: int, chunks: bytes = b"", size: tuple[int, int] | None = None
) -> bytes:
    """Return a black square PNG.

    Args:
        side: In pixels.
        bits: The bits a channel.
        color: PNG's color type: 0 gray, 2 RGB, 3 palette, 4 gray and alpha, 6 RGBA.
        chunks: More chunks ahead of the pixels, such as ``tRNS``.
        size: The size that the header declares, if it is another.
    """
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[color]
    packer = zlib.compressobj(1)
    row = bytes(1 + side * channels * bits // 8)
    rows = b"".join(packer.compress(row) for _ in range(side)) + packer.flush()
    width, height = size or (side, side)
    header = struct.pack(">IIBBBBB", width, height, bits, color, 0, 0, 0)
    if color == 3:
        chunks = chunk(b"PLTE", bytes(768)) + chunks
    whole = chunk(b"IHDR", header) + chunks + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + whole


def chunk(name: bytes, body: bytes) -> bytes:
    """Return a chunk of a PNG."""
    checksum = zlib.crc32(name + body)
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", checksum)


def jpeg_of_scans(side: int, scans: int) -> bytes:
    """Return a gray progressive JPEG. Each scan has few bytes, and costs a pass over all blocks."""
    blocks = (-(-side // 8)) ** 2
    frame = struct.pack(">BHHB", 8, side, side, 1) + b"\1\x11\0"
    # The one code of each table: "no difference", and "2^14 and 14 bits more blocks end here".
    direct = segment(0xC4, b"\x00" + bytes([1] + [0] * 15) + b"\0")
    alternating = segment(0xC4, b"\x10" + bytes([1] + [0] * 15) + b"\xe0")
    start = b"\xff\xd8" + segment(0xDB, b"\0" + b"\1" * 64) + segment(0xC2, frame)
    first = segment(0xDA, b"\1\1\0\0\0\0") + entropy(["0"] * blocks)
    codes = []
    while blocks > 0:
        run = min(32767, max(blocks, 16384))
        codes.append(f"0{run - 16384:014b}")
        blocks -= run
    scan = segment(0xDA, b"\1\1\0\1\x3f\0") + entropy(codes)
    return start + direct + alternating + first + scan * (scans - 1) + b"\xff\xd9"


def segment(marker: int, body: bytes) -> bytes:
    """Return a segment of a JPEG."""
    return bytes([0xFF, marker]) + struct.pack(">H", len(body) + 2) + body


def entropy(codes: list[str]) -> bytes:
    """Return entropy-coded bits of a JPEG as bytes."""
    bits = "".join(codes)
    bits += "1" * (-len(bits) % 8)
    return int(bits, 2).to_bytes(len(bits) // 8, "big").replace(b"\xff", b"\xff\x00")


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    """Return an image in a file format."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _photo(side: int) -> Image.Image:
    return Image.linear_gradient("L").resize((side, side)).convert("RGB")


def _rotated() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


IMAGES: dict[str, Callable[[int], bytes]] = {
    "png gray 1": lambda side: png(side, bits=1, color=0),
    "png gray": lambda side: png(side, bits=8, color=0),
    "png gray 16": lambda side: png(side, bits=16, color=0),
    "png gray tRNS": lambda side: png(side, bits=8, color=0, chunks=chunk(b"tRNS", bytes(2))),
    "png rgb": lambda side: png(side, bits=8, color=2),
    "png rgb 16": lambda side: png(side, bits=16, color=2),
    "png rgb tRNS": lambda side: png(side, bits=8, color=2, chunks=chunk(b"tRNS", bytes(6))),
    "png rgb rotated": lambda side: encoded(_photo(side), "PNG", exif=_rotated(), compress_level=1),
    "png palette": lambda side: png(side, bits=8, color=3),
    "png palette tRNS": lambda side: png(side, bits=8, color=3, chunks=chunk(b"tRNS", bytes(256))),
    "png gray alpha": lambda side: png(side, bits=8, color=4),
    "png gray alpha 16": lambda side: png(side, bits=16, color=4),
    "png rgba": lambda side: png(side, bits=8, color=6),
    "png rgba 16": lambda side: png(side, bits=16, color=6),
    "png rgba profile": lambda side: encoded(
        _photo(side).convert("RGBA"), "PNG", icc_profile=DISPLAY_P3, compress_level=1
    ),
    "png animated": lambda side: encoded(
        _photo(side), "PNG", save_all=True, append_images=[Image.new("RGB", (side, side))]
    ),
    "jpeg": lambda side: encoded(_photo(side), "JPEG"),
    "jpeg profile": lambda side: encoded(_photo(side), "JPEG", icc_profile=DISPLAY_P3),
    "jpeg cmyk profile": lambda side: encoded(
        _photo(side).convert("CMYK"), "JPEG", icc_profile=cmyk_profile()
    ),
    "jpeg gray": lambda side: encoded(_photo(side).convert("L"), "JPEG"),
    "jpeg rotated": lambda side: encoded(_photo(side), "JPEG", exif=_rotated()),
    "jpeg progressive": lambda side: encoded(_photo(side), "JPEG", progressive=True),
    "jpeg progressive 4:4:4": lambda side: encoded(
        _photo(side), "JPEG", progressive=True, subsampling=0
    ),
    "jpeg cmyk": lambda side: encoded(_photo(side).convert("CMYK"), "JPEG"),
    "jpeg cmyk progressive": lambda side: encoded(
        _photo(side).convert("CMYK"), "JPEG", progressive=True
    ),
    "webp": lambda side: encoded(_photo(side), "WEBP", method=0),
    "webp lossless": lambda side: encoded(_photo(side), "WEBP", lossless=True, method=0, quality=0),
    "webp alpha": lambda side: encoded(
        _photo(side).convert("RGBA").rotate(3), "WEBP", lossless=True, method=0, quality=0
    ),
    "bmp": lambda side: encoded(_photo(side), "BMP"),
    "bmp palette": lambda side: encoded(_photo(side).convert("P"), "BMP"),
}
"""An image of every kind that is stored differently in memory, by its side in pixels."""

PEAK = """
import re, sys
from pathlib import Path
from tasks.data.decoding.image_check import check_image
Path("/proc/self/clear_refs").write_text("5")
def peak():
    status = Path("/proc/self/status").read_text()
    return 1024 * int(re.findall("VmHWM:[ \\t]+([0-9]+)", status)[0])
before, needed = peak(), []
check_image(Path(sys.argv[1]), None, needed.append)
print(peak() - before, needed[0])
"""


def memory_of(path: Path) -> tuple[int, int]:
    """Return the bytes that the check of an image takes at its peak, and those it reserves."""
    peak, needed = run_python(PEAK, str(path)).split()
    return int(peak), int(needed)


def run_python(program: str, *arguments: str) -> str:
    """Return what a program prints."""
    command = [sys.executable, "-P", "-c", program, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
