import asyncio
import zipfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from console.errors import TooLargeError
from console.services.archive import NewFile, write_archive
from tasks.data.archives import unpack
from tasks.errors import InvalidJobError
from tests.console.conftest import PNG


def file(name: str, data: bytes = PNG) -> NewFile:
    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(data), 7):
            yield data[start : start + 7]

    return NewFile(name, pieces())


def packed(folder: Path, *files: NewFile, most: int = 10_000) -> dict[str, bytes]:
    async def pack() -> dict[str, bytes]:
        async with write_archive(folder / "packing", files, most) as path:
            assert not unpack(path, folder / "unpacked", most_bytes=10**6).problems
            with zipfile.ZipFile(path) as archive:
                return {name: archive.read(name) for name in archive.namelist()}

    return asyncio.run(pack())


def test_images_and_their_captions_are_packed_as_they_come(tmp_path: Path) -> None:
    found = packed(tmp_path, file("Katze 1.PNG"), file("Katze 1.txt", b"a cat"), file("dog.png"))
    assert found == {
        "00000-Katze_1.png": PNG,
        "00000-Katze_1.txt": b"a cat",
        "00001-dog.png": PNG,
    }
    assert list((tmp_path / "packing").iterdir()) == []


@pytest.mark.parametrize(
    "name",
    [
        "../../evil.png",
        "/etc/evil.png",
        "C:\\evil.png",
        "..png",
        "....png",
        "a\x00b\n.png",
        "\u202egnp.exe.png",
        "x" * 5000 + ".png",
        "-rf.png",
        "CON.png",
        "\ud800.png",
    ],
)
def test_no_name_harms_anybody(tmp_path: Path, name: str) -> None:
    [kept] = packed(tmp_path, file(name))
    assert kept.startswith("00000")
    assert kept.endswith(".png")
    assert len(kept) < 100
    assert not set(kept) & set("/\\\x00\n")


def test_files_of_one_safe_name_stay_apart(tmp_path: Path) -> None:
    assert len(packed(tmp_path, file("a?.png"), file("a!.png"), file("a!.txt", b"x"))) == 3


def test_what_is_no_image_or_is_there_twice_is_told_by_name(tmp_path: Path) -> None:
    with pytest.raises(InvalidJobError) as told:
        packed(tmp_path, file("run.exe"), file("a.png"), file("a.png"), file("noend"))
    assert [it.location for it in told.value.problems] == ["run.exe", "a.png", "noend"]
    with pytest.raises(InvalidJobError, match="no file"):
        packed(tmp_path)


def test_more_than_is_allowed_is_given_up_while_it_comes(tmp_path: Path) -> None:
    with pytest.raises(TooLargeError):
        packed(tmp_path, file("a.png"), file("b.png"), most=len(PNG) + 10)
    assert list((tmp_path / "packing").iterdir()) == []
