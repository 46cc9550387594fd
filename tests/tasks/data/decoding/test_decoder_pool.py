import signal
import struct
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from PIL import Image

from tasks.data.decoding.decoder_pool import DecodeError, DecoderLimits, decode_all, unpack_archive
from tests.tasks.data.hostile import (
    IMAGES,
    chunk,
    encoded,
    jpeg_of_scans,
    memory_of,
    png,
    run_python,
)

MIB = 2**20
# Pixels a side and scans: many seconds of decoding.
SLOW = (16384, 99)


class StoppedError(Exception):
    """The user has cancelled."""


def request(path: Path, mask: Path | None = None) -> dict[str, Any]:
    masked = mask and {"path": str(mask), "sizes": [[64, 64]], "center_crop": True}
    return {"kind": "image", "path": str(path), "mask": masked}


def written(folder: Path, name: str, data: bytes) -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


def decoders() -> list[psutil.Process]:
    """Return the decoders of this process."""
    children = psutil.Process().children()
    return [child for child in children if "tasks.data.decoding.decoder" in child.cmdline()]


def once_reading(path: Path, act: Callable[[psutil.Process], None]) -> Callable[[], None]:
    """Return a ``check_stop`` that acts on a decoder that reads an archive or a large image."""

    def check() -> None:
        for decoder in decoders():
            reads = str(path) in {file.path for file in decoder.open_files()}
            if reads or decoder.memory_info().rss > 200 * MIB:
                act(decoder)

    return check


@pytest.fixture
def good(tmp_path: Path) -> Path:
    return written(tmp_path, "good.png", encoded(Image.new("RGB", (64, 64), "red"), "PNG"))


@pytest.fixture
def slow(tmp_path: Path) -> Path:
    return written(tmp_path, "slow.jpg", jpeg_of_scans(*SLOW))


def test_a_cancel_ends_a_slow_decoder_at_once(slow: Path) -> None:
    cancelled_at: list[float] = []

    def stop(_: psutil.Process) -> None:
        cancelled_at.append(time.monotonic())
        raise StoppedError

    with pytest.raises(StoppedError):
        list(decode_all([request(slow)], check_stop=once_reading(slow, stop)))
    assert time.monotonic() - cancelled_at[0] < 1
    assert decoders() == []


def test_a_cancel_ends_the_unpacking_of_an_archive(tmp_path: Path) -> None:
    archive = tmp_path / "many.zip"
    with zipfile.ZipFile(archive, "w") as packed:
        for number in range(30_000):
            packed.writestr(f"{number}.png", b"")
    cancelled_at: list[float] = []

    def stop(_: psutil.Process) -> None:
        cancelled_at.append(time.monotonic())
        raise StoppedError

    with pytest.raises(StoppedError):
        unpack_archive(
            archive, tmp_path / "out", max_bytes=2**30, check_stop=once_reading(archive, stop)
        )
    assert time.monotonic() - cancelled_at[0] < 1
    assert decoders() == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no full disk")
def test_a_full_disk_is_no_finding_of_a_file(good: Path) -> None:
    thumbnail = {"kind": "thumbnail", "path": str(good), "thumbnail": "/dev/full", "side": 8}
    with pytest.raises(OSError, match="No space left"):
        list(decode_all([thumbnail]))


def test_a_file_that_takes_too_long_is_a_finding(tmp_path: Path, good: Path) -> None:
    slow = written(tmp_path, "slow.jpg", jpeg_of_scans(*SLOW))
    limits = DecoderLimits(processes=1, time_s=1.5)
    late, result = decode_all([request(slow), request(good)], limits=limits)
    assert str(late) == "takes longer than 1.5 s to read"
    assert result["width"] == 64


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGKILL])
def test_a_crash_of_a_decoder_costs_one_file(slow: Path, good: Path, number: int) -> None:
    def crash(decoder: psutil.Process) -> None:
        decoder.send_signal(number)
        decoder.wait()

    requests = [request(good), request(slow), request(good)]
    answers = list(
        decode_all(
            requests, check_stop=once_reading(slow, crash), limits=DecoderLimits(processes=1)
        )
    )
    assert isinstance(answers[1], DecodeError)
    assert "ended its decoder" in str(answers[1])
    assert answers[0] == answers[2]
    assert decoders() == []


def test_a_decoder_has_no_secrets(good: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hidden")
    monkeypatch.setenv("TRAINING_BROKER_URL", "redis://:hidden@host")
    seen: list[str] = []

    def look() -> None:
        for decoder in decoders():
            seen.extend(decoder.environ())

    list(decode_all([request(good)] * 20, check_stop=look))
    assert "PATH" in seen
    assert not {name for name in seen if name.startswith(("HF_", "TRAINING_"))}


def test_a_jpeg_of_many_scans_is_refused_at_once(tmp_path: Path) -> None:
    bomb = written(tmp_path, "scans.jpg", jpeg_of_scans(8192, 400))
    start = time.monotonic()
    [answer] = decode_all([request(bomb)])
    assert str(answer) == "is a JPEG of over 100 scans, which take long to decode"
    assert time.monotonic() - start < 5


@pytest.mark.parametrize("side", [12000, 16384])
def test_a_mask_of_another_size_is_not_decoded(tmp_path: Path, good: Path, side: int) -> None:
    data = png(8, bits=8, color=3, chunks=chunk(b"tRNS", bytes(256)), size=(side, side))
    [answer] = decode_all([request(good, written(tmp_path, "mask.png", data))])
    assert str(answer) == (f"has a mask that is of another size: {side}x{side}, not 64x64")


def test_an_image_of_too_much_memory_is_refused_with_numbers(tmp_path: Path) -> None:
    canvas = struct.pack("<I", 16383)[:3] * 2
    body = b"WEBPVP8X" + struct.pack("<I", 10) + bytes(4) + canvas
    webp = written(tmp_path, "a.webp", b"RIFF" + struct.pack("<I", len(body)) + body)
    [answer] = decode_all([request(webp)])
    assert str(answer) == "takes 4,609 MiB of memory to decode; the maximum is 2,048 MiB"


OVERSPEND = """
import io
from tasks.data.decoding.decoder import Decoder
decoder = Decoder(io.BytesIO(), io.BytesIO())
decoder.reserve(2**20)
bytearray(60 * 2**20)
try:
    bytearray(200 * 2**20)
except MemoryError:
    print("refused")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="other kernels do not limit memory")
def test_a_decoder_cannot_take_more_memory_than_it_reserved() -> None:
    assert run_python(OVERSPEND) == "refused"


@pytest.mark.skipif(sys.platform != "linux", reason="other kernels do not report the peak")
@pytest.mark.parametrize("kind", IMAGES)
def test_the_memory_of_an_image_is_estimated_by_its_kind(kind: str, tmp_path: Path) -> None:
    path = written(tmp_path, "image", IMAGES[kind](2048))
    peak, needed = memory_of(path)
    assert needed / 2 < peak < needed + 32 * MIB
