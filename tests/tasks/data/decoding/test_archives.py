import gzip
import io
import random
import stat
import struct
import tarfile
import tempfile
import tracemalloc
import warnings
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tasks.data.decoding import archive_members, archives
from tasks.data.decoding.archives import MAX_PROBLEMS, Unpacked, unpack
from tasks.data.read_policy import ReadPolicy
from tasks.data.sources import Sources
from tasks.errors import Problem
from tasks.jobs.datasets import ArchiveDatasetConfig

# Archives are unpacked without reading an image, so any bytes do; these do not shrink.
IMAGE = random.Random(0).randbytes(3000)
MOST = 10 * 2**20

Entry = tuple[str | zipfile.ZipInfo, bytes]
TarEntry = tuple[tarfile.TarInfo, bytes]


def zipped(*entries: Entry, compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of names that are there twice
        with zipfile.ZipFile(file, "w", compression) as archive:
            for name, data in entries:
                archive.writestr(name, data)
    return file.getvalue()


def tarred(*entries: TarEntry, kind: int = tarfile.PAX_FORMAT) -> bytes:
    file = io.BytesIO()
    with tarfile.open(
        fileobj=file, mode="w", format=kind, encoding="utf-8", errors="surrogateescape"
    ) as archive:
        for info, data in entries:
            archive.addfile(info, io.BytesIO(data))
    return file.getvalue()


def member(
    name: str, data: bytes = IMAGE, kind: bytes = tarfile.REGTYPE, link: str = ""
) -> TarEntry:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    info.size = len(data) if kind == tarfile.REGTYPE else 0
    return info, data


def header(name: str, size: int, kind: bytes) -> bytes:
    """One block of a tar, whatever it claims."""
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    return info.tobuf(tarfile.GNU_FORMAT)


def pax(*records: bytes) -> bytes:
    """An extended header, its records as they are."""
    data = b"".join(records)
    return header("pax", len(data), tarfile.XHDTYPE) + data + bytes(-len(data) % 512)


def sparse(name: str) -> bytes:
    """A sparse file whose map goes on in a second block, and then a block of data."""
    block = bytearray(header(name, 512, tarfile.GNUTYPE_SPARSE))
    block[482] = 1
    block[148:156] = b" " * 8
    block[148:155] = b"%06o\0" % sum(block)
    return bytes(block) + b"x" * 504 + bytes(8) + b"x" * 512


def zip_link(name: str, mode: int = stat.S_IFLNK) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.external_attr = (mode | 0o777) << 16
    return info


def patched(data: bytes, change: Callable[[bytearray], None]) -> bytes:
    changed = bytearray(data)
    change(changed)
    return bytes(changed)


def in_directory(offset: int, value: bytes) -> Callable[[bytearray], None]:
    """Overwrite a field of the first entry of a zip's directory."""

    def change(data: bytearray) -> None:
        start = data.index(b"PK\x01\x02") + offset
        data[start : start + len(value)] = value

    return change


def flipped(data: bytearray) -> None:
    """Change a byte of the first image, which both kinds of archives begin with."""
    data[700] ^= 0xFF


class Place:
    """A folder to unpack into, with a secret beside it that must stay as it is."""

    def __init__(self, top: Path) -> None:
        self.top = top
        self.folder = top / "unpacked"
        self.archive = top / "data.bin"
        (top / "secret.png").write_bytes(b"secret")

    def unpack(self, data: bytes, max_bytes: int = MOST) -> Unpacked:
        """Unpack, and check that the folder has the reported files and nothing else changed."""
        self.archive.write_bytes(data)
        found = unpack(self.archive, self.folder, max_bytes=max_bytes)
        assert {path.name for path in self.top.iterdir()} == {
            "data.bin",
            "secret.png",
            "unpacked",
        }
        assert (self.top / "secret.png").read_bytes() == b"secret"
        assert set(self.folder.iterdir()) == set(found.files.values())
        assert len(set(found.files.values())) == len(found.files)
        assert all(path.is_file() and not path.is_symlink() for path in found.files.values())
        return found


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def read(found: Unpacked) -> dict[str, bytes]:
    return {name: path.read_bytes() for name, path in found.files.items()}


def messages(found: Unpacked) -> list[str]:
    return [str(problem) for problem in found.problems]


GOOD = {"cats/b.PNG": IMAGE, "cats/b.txt": b"a cat", "a.jpg": b"", "café.webp": IMAGE}
GOOD_TAR = tarred(*(member(name, data) for name, data in GOOD.items()))


@pytest.mark.parametrize(
    "data",
    [
        zipped(*GOOD.items()),
        zipped(*GOOD.items(), compression=zipfile.ZIP_STORED),
        GOOD_TAR,
        tarred(*(member(name, data) for name, data in GOOD.items()), kind=tarfile.GNU_FORMAT),
        tarred(*(member(name, data) for name, data in GOOD.items()), kind=tarfile.USTAR_FORMAT),
        gzip.compress(GOOD_TAR),
    ],
    ids=["zip", "zip stored", "pax tar", "gnu tar", "ustar", "tar.gz"],
)
def test_an_archive_is_unpacked_into_numbered_files(place: Place, data: bytes) -> None:
    found = place.unpack(data)
    assert (found.problems, found.others) == ([], [])
    assert read(found) == GOOD
    assert list(found.files) == ["a.jpg", "café.webp", "cats/b.PNG", "cats/b.txt"]
    assert {name: path.name for name, path in found.files.items()} == {
        "cats/b.PNG": "00000001.png",
        "cats/b.txt": "00000002.txt",
        "a.jpg": "00000003.jpg",
        "café.webp": "00000004.webp",
    }


def test_folders_and_desktop_files_are_skipped(place: Place) -> None:
    names = [
        *("__MACOSX/._a.png", ".DS_Store", "x/.hidden.png", "x/Thumbs.db", "x/Icon\r"),
        *("README.md", "deep.ZIP", "a.gif"),
    ]
    found = place.unpack(
        zipped(("x/", b""), ("./x//a.png", IMAGE), *((name, b"x") for name in names))
    )
    assert (list(found.files), found.problems, found.others) == (["x/a.png"], [], names)
    place.folder.joinpath("00000001.png").unlink()
    found = place.unpack(
        tarred(
            member("./", b"", tarfile.DIRTYPE),
            member("./x", b"", tarfile.DIRTYPE),
            *(member(name, IMAGE) for name in names),
            member("./x/a.png"),
        )
    )
    assert (list(found.files), found.problems, found.others) == (["x/a.png"], [], names)


def test_an_unmarked_utf8_name_is_read(place: Place) -> None:
    # As macOS writes them; the same length, so nothing else moves.
    data = zipped(("caf__.png", IMAGE)).replace(b"caf__", "café".encode())
    assert list(place.unpack(data).files) == ["café.png"]
    place.folder.joinpath("00000001.png").unlink()
    data = zipped(("caf_.png", IMAGE)).replace(b"caf_", "café".encode("cp437"))
    assert list(place.unpack(data).files) == ["café.png"]


def test_long_names_and_global_headers_are_read(place: Place) -> None:
    name = "/".join(["folder" * 20] * 3) + "/ä.png"
    for kind in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
        found = place.unpack(tarred(member(name), kind=kind))
        assert (read(found), found.problems) == ({name: IMAGE}, [])
        found.files[name].unlink()
    comment = b"14 comment=ab\n"
    block = header("pax_global_header", len(comment), tarfile.XGLTYPE)
    found = place.unpack(block + comment + bytes(512 - len(comment)) + tarred(member("a.png")))
    assert (list(found.files), found.problems) == (["a.png"], [])


BAD_NAMES = [
    ("/etc/evil.png", "has an absolute path"),
    ("C:/evil.png", "has an absolute path"),
    ("C:evil.png", "has an absolute path"),
    ("../secret.png", "has a '..' in its path"),
    ("x/../../secret.png", "has a '..' in its path"),
    ("../README.md", "has a '..' in its path"),
    ("..\\secret.png", "has a backslash"),
    ("a\nb.png", "has a control character"),
    ("a\x1b[2Jb.png", "has a control character"),
    ("a\x85b.png", "has a control character"),
    ("a" * 1100 + ".png", "has a name of over 1024 bytes"),
]


@pytest.mark.parametrize(("name", "problem"), BAD_NAMES)
def test_a_bad_name_is_a_problem_of_its_member(place: Place, name: str, problem: str) -> None:
    good = tarred(member(name), member("ok.png"))
    for data in (zipped((name, IMAGE), ("ok.png", IMAGE)), good, gzip.compress(good)):
        found = place.unpack(data)
        assert list(found.files) == ["ok.png"]
        [message] = messages(found)
        assert f": {problem}" in message
        assert message.isprintable()
        assert len(message) < 400
        found.files["ok.png"].unlink()


BAD_MEMBERS = {
    "zip NUL": (
        zipped(("a_.png.sh.png", IMAGE), ("ok.png", b"")).replace(b"a_.png.sh", b"a\0.png.sh"),
        r"a\u0000.png.sh.png: has a control character in its name; rename it",
    ),
    "tar NUL": (
        pax(b"16 path=a\0b.png\n") + tarred(member("x.png"), member("ok.png", b"")),
        r"a\u0000b.png: has a control character in its name; rename it",
    ),
    "tar not UTF-8": (
        tarred(member("caf\udce9.png"), member("ok.png", b"")),
        r"caf\udce9.png: has a name that is not UTF-8; rename it",
    ),
    "tar nameless": (
        tarred(member(""), member("ok.png", b"")),
        "data.bin: has no name; pack it again",
    ),
    "zip link": (
        zipped((zip_link("a.png"), b"/etc/passwd"), ("ok.png", b"")),
        "a.png: is a link; pack the file itself",
    ),
    "zip link to a folder": (
        zipped((zip_link("out"), b".."), ("ok.png", b"")),
        "out: is a link; pack the file itself",
    ),
    "zip pipe": (
        zipped((zip_link("a.png", stat.S_IFIFO), b""), ("ok.png", b"")),
        "a.png: is a device or pipe, not a file; remove it",
    ),
    "tar link": (
        tarred(member("a.png", kind=tarfile.SYMTYPE, link="../secret.png"), member("ok.png", b"")),
        "a.png: is a link; pack the file itself",
    ),
    "tar hard link": (
        tarred(member("a.png", kind=tarfile.LNKTYPE, link="/etc/passwd"), member("ok.png", b"")),
        "a.png: is a link; pack the file itself",
    ),
    "tar device": (
        tarred(member("a.png", kind=tarfile.CHRTYPE), member("ok.png", b"")),
        "a.png: is a device or pipe, not a file; remove it",
    ),
    "tar pipe": (
        tarred(member("a.png", kind=tarfile.FIFOTYPE), member("ok.png", b"")),
        "a.png: is a device or pipe, not a file; remove it",
    ),
    "tar unknown": (
        header("a.png", 600, b"V") + bytes(1024) + tarred(member("ok.png", b"")),
        "a.png: is of an unknown kind (b'V'); pack it as a plain file",
    ),
    "tar sparse": (
        sparse("a.png") + tarred(member("ok.png", b"")),
        "a.png: is packed as a sparse file; pack it without --sparse",
    ),
    "tar pax sparse": (
        pax(b"25 GNU.sparse.size=99999\n") + tarred(member("a.png"), member("ok.png", b"")),
        "a.png: is packed as a sparse file; pack it without --sparse",
    ),
    "zip encrypted": (
        patched(zipped(("a.png", IMAGE), ("ok.png", b"")), in_directory(8, b"\x01")),
        "a.png: is encrypted; pack it without a password",
    ),
    "zip bzip2": (
        patched(zipped(("a.png", IMAGE), ("ok.png", b"")), in_directory(10, b"\x0c")),
        "a.png: is not compressed by 'deflate'; pack it with that, or without compression",
    ),
    "zip twice": (
        zipped(("ok.png", b""), ("./ok.png", IMAGE)),
        "./ok.png: is in the archive twice; remove one of them",
    ),
    "tar twice": (
        tarred(member("ok.png", b""), member("ok.png")),
        "ok.png: is in the archive twice; remove one of them",
    ),
    "zip huge": (
        patched(
            zipped(("a.png", IMAGE), ("ok.png", b"")),
            in_directory(24, struct.pack("<L", 2**29 + 1)),
        ),
        "a.png: is larger than 512 MiB, the maximum for one file",
    ),
    "zip checksum": (
        patched(zipped(("a.png", IMAGE), ("ok.png", b""), compression=zipfile.ZIP_STORED), flipped),
        "a.png: is damaged or truncated (Bad CRC-32 for file 'a.png'); pack it again",
    ),
    "zip deflate": (
        patched(zipped(("a.png", IMAGE), ("ok.png", b"")), lambda data: data.__setitem__(35, 7)),
        "a.png: is damaged or truncated (Error -3 while decompressing data: invalid block type); "
        "pack it again",
    ),
    "zip short": (
        patched(
            zipped(("a.png", IMAGE), ("ok.png", b"")), in_directory(24, struct.pack("<L", 4000))
        ),
        "a.png: is damaged or truncated (it ends too soon); pack it again",
    ),
    "zip offset": (
        patched(
            zipped(("a.png", IMAGE), ("ok.png", b"")), in_directory(42, struct.pack("<L", 2**31))
        ),
        "a.png: is damaged or truncated (Truncated file header); pack it again",
    ),
}


@pytest.mark.parametrize(("data", "problem"), BAD_MEMBERS.values(), ids=BAD_MEMBERS)
def test_a_bad_member_does_not_stop_the_others(place: Place, data: bytes, problem: str) -> None:
    found = place.unpack(data)
    assert (read(found), messages(found)) == ({"ok.png": b""}, [problem])


def test_a_large_member_of_a_tar_is_not_read(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "MAX_MEMBER_BYTES", 2**20)
    found = place.unpack(tarred(member("a.png", bytes(2**20 + 1)), member("ok.png")))
    assert messages(found) == ["a.png: is larger than 1 MiB, the maximum for one file"]
    assert list(found.files) == ["ok.png"]


def test_problems_are_reported_together_up_to_a_limit(place: Place) -> None:
    names = [f"../{n}.png" for n in range(MAX_PROBLEMS + 5)]
    for data in (
        zipped(("ok.png", b""), *((name, b"") for name in names)),
        tarred(member("ok.png", b""), *(member(name, b"") for name in names)),
    ):
        found = place.unpack(data)
        assert [problem.location for problem in found.problems] == [
            *names[:MAX_PROBLEMS],
            "data.bin",
        ]
        assert found.problems[-1] == Problem("data.bin", "5 more members have problems")
        found.files["ok.png"].unlink()


def claim_much(data: bytearray) -> None:
    """Let a zip's directory claim 257 MiB."""
    start = data.index(b"PK\x05\x06") + 12
    data[start : start + 4] = struct.pack("<L", 257 * 2**20)


def with_bad_utf8(data: bytes) -> bytes:
    return data.replace("é".encode(), b"\xe9\xe9")


TWO_ZIPPED = zipped(("a.png", IMAGE), ("b.png", IMAGE))
TWO_TARRED = tarred(member("a.png"), member("b.png"))
END_OF_TAR = TWO_TARRED.rindex(b"ustar") - 257 + 512 + 6 * 512
HUGE = 2**40
STOPPING = {
    "nothing": (b"", "is not a zip, tar or tar.gz archive"),
    "text": (b"a cat" * 1000, "is not a zip, tar or tar.gz archive"),
    "7z": (b"7z\xbc\xaf\x27\x1c" + bytes(600), "is not a zip, tar or tar.gz archive"),
    "zip behind a program": (b"MZ" + TWO_ZIPPED, "is not a zip, tar or tar.gz archive"),
    "gzip of text": (gzip.compress(b"a cat" * 1000), "is gzip but not a tar"),
    "gzip of gzip": (gzip.compress(gzip.compress(TWO_TARRED)), "is gzip but not a tar"),
    "gzip damaged": (b"\x1f\x8b" + bytes(100), "is damaged or truncated"),
    "zip cut off": (TWO_ZIPPED[:-30], "is damaged or truncated (its directory is missing)"),
    "zip of a huge directory": (
        patched(TWO_ZIPPED, claim_much),
        "has a directory of over 256 MiB",
    ),
    "zip name not UTF-8": (
        with_bad_utf8(zipped(("é.png", IMAGE))),
        "has a name that is not UTF-8",
    ),
    "zip of a new version": (
        patched(TWO_ZIPPED, in_directory(6, b"\xff")),
        "is damaged or truncated (zip file version 25.5)",
    ),
    "zip of shared bytes": (
        patched(TWO_ZIPPED, in_directory(20, struct.pack("<L", len(TWO_ZIPPED)))),
        "has members that share their bytes",
    ),
    "tar cut off in a member": (TWO_TARRED[: END_OF_TAR - 700], "is damaged or truncated"),
    "tar cut off between members": (TWO_TARRED[:END_OF_TAR], "is damaged or truncated"),
    "tar with a bad header": (
        patched(TWO_TARRED, lambda data: data.__setitem__(3584 + 8, 1)),
        "is damaged or truncated (bad checksum)",
    ),
    "tar of a negative size": (
        tarred(member("ok.png")).removesuffix(bytes(1024))[:3584] + header("a.png", -512, b"0"),
        "is damaged or truncated (negative size)",
    ),
    "tar of a short member": (header("a.png", 2**20, b"0") + IMAGE, "is damaged or truncated"),
    "tar of a huge long name": (header("x", HUGE, b"L") + IMAGE, "has a header of over 1 MiB"),
    "tar of a huge attribute": (header("x", HUGE, b"x") + IMAGE, "has a header of over 1 MiB"),
    "tar of a huge global header": (header("x", HUGE, b"g"), "has a header of over 1 MiB"),
    "tar of many headers": (
        pax(b"9 path=a\n") * 2000 + TWO_TARRED,
        "has a header of over 1 MiB",
    ),
    "tar of a bad pax size": (pax(b"10 size=-1\n") + TWO_TARRED, "is damaged or truncated"),
    "tar of a bad pax record": (pax(b"2 2 2 2 =x\n") + TWO_TARRED, "is damaged or truncated"),
    "tar.gz cut off": (gzip.compress(TWO_TARRED)[:-100], "is damaged or truncated"),
    "tar.gz with a bad checksum": (
        patched(gzip.compress(TWO_TARRED), lambda data: data.__setitem__(-8, data[-8] ^ 1)),
        "is damaged or truncated (CRC check failed",
    ),
}


@pytest.mark.parametrize(("data", "problem"), STOPPING.values(), ids=STOPPING)
def test_a_fatal_problem_leaves_no_file(place: Place, data: bytes, problem: str) -> None:
    found = place.unpack(data)
    assert found.files == {}
    [message] = messages(found)
    assert message.startswith(f"data.bin: {problem}")


def test_a_damaged_archive_is_one_problem_of_its_dataset(tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(TWO_ZIPPED[:-30])
    sources = Sources(ReadPolicy(), tmp_path / "downloads", tmp_path / "scratch")
    config = ArchiveDatasetConfig(archive=str(tmp_path / "a.zip"))
    [problem] = sources.listing(config).problems
    assert "its directory is missing" in problem.message


def test_problems_before_a_fatal_one_are_reported(place: Place) -> None:
    found = place.unpack(tarred(member("../a.png"), member("b.png"))[:END_OF_TAR])
    assert [problem.location for problem in found.problems] == ["../a.png", "data.bin"]
    assert found.files == {}


def test_too_many_members_are_refused(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "MAX_ENTRIES", 2)
    assert len(place.unpack(TWO_ZIPPED).files) == 2
    for path in place.folder.iterdir():
        path.unlink()
    problem = ["data.bin: has over 2 entries; split it into several datasets"]
    three = tarred(*(member(name) for name in ("a.png", "b.md", "c.png")))
    assert messages(place.unpack(three)) == problem
    # What the record at the end says of their number is not believed.
    data = patched(
        zipped(("a", b""), ("b", b""), ("c", b"")),
        lambda data: data.__setitem__(slice(-12, -10), b"\1\0"),
    )
    monkeypatch.setattr(zipfile, "ZipFile", None)
    assert messages(place.unpack(data)) == problem


ZEROS = bytes(16 * 2**20)
ZEROS_TARRED = gzip.compress(tarred(member("a.png"), member("b.png", ZEROS)), 1)
OVER_MAX = "data.bin: unpacks to over 10,485,760 bytes, the maximum"
BOMBS = {
    "zip": zipped(("a.png", IMAGE), ("b.png", ZEROS)),
    "zip of many": zipped(("a.png", IMAGE), *((f"{n}.png", ZEROS[: 2**20]) for n in range(11))),
    "tar.gz": ZEROS_TARRED,
    "tar.gz of what is not used": gzip.compress(tarred(member("a.md", ZEROS)), 1),
    "tar.gz of a huge member": gzip.compress(header("a.png", 2**28, b"0") + ZEROS, 1),
    "tar.gz with zeros behind its end": gzip.compress(TWO_TARRED + ZEROS, 1),
    "tar.gz of a sparse file's map": gzip.compress(
        sparse("a.png")[:512] + (b"7" * 11 + b"\0") * 1_000_000, 1
    ),
}


def in_memory(run: Callable[[], Unpacked]) -> tuple[Unpacked, int]:
    """What something finds, and the most memory that it takes."""
    tracemalloc.start()
    try:
        return run(), tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("data", BOMBS.values(), ids=BOMBS)
def test_a_bomb_is_stopped_early(
    place: Place, monkeypatch: pytest.MonkeyPatch, data: bytes
) -> None:
    written = 0
    unlink = Path.unlink

    def measure(path: Path, missing_ok: bool = False) -> None:
        nonlocal written
        written += path.stat().st_size
        unlink(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", measure)
    found, memory = in_memory(lambda: place.unpack(data))
    assert (found.files, messages(found)) == ({}, [OVER_MAX])
    assert written <= MOST
    # Some four chunks of 256 KiB, whatever is claimed.
    assert memory < 4 * 2**20


def test_extreme_growth_is_a_bomb_within_the_limit(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = (
        "data.bin: unpacks to over 200 times its size, which images do not; "
        "it looks like a decompression bomb"
    )
    monkeypatch.setattr(archive_members, "SMALL_BYTES", 2**20)
    for data in (BOMBS["zip"], ZEROS_TARRED):
        assert messages(place.unpack(data, max_bytes=2**40)) == [problem]
    # Small ones may grow as they like.
    found = place.unpack(zipped(("a.txt", bytes(2**20))), max_bytes=2**40)
    assert found.problems == []


def test_exactly_the_maximum_is_unpacked(place: Place) -> None:
    assert place.unpack(TWO_ZIPPED, max_bytes=6000).problems == []
    for path in place.folder.iterdir():
        path.unlink()
    assert place.unpack(TWO_ZIPPED, max_bytes=5999).files == {}


def test_headers_of_a_tar_are_not_kept(place: Place) -> None:
    comment = b"65000 comment=".ljust(65000 - 1, b"x") + b"\n"
    data = (pax(comment) + header("a.md", 0, b"0")) * 1000 + bytes(1024)
    found, memory = in_memory(lambda: place.unpack(data, max_bytes=2**30))
    assert (found.files, len(found.others), found.problems) == ({}, 1000, [])
    assert memory < 4 * 2**20


def test_disk_errors_are_raised(
    place: Place,
) -> None:
    with pytest.raises(FileNotFoundError):
        unpack(place.top / "none.zip", place.folder, max_bytes=MOST)
    place.folder.mkdir(exist_ok=True)
    (place.folder / "00000001.png").symlink_to(place.top / "secret.png")
    place.archive.write_bytes(TWO_ZIPPED)
    with pytest.raises(FileExistsError):
        unpack(place.archive, place.folder, max_bytes=MOST)
    assert (place.top / "secret.png").read_bytes() == b"secret"


def check_any(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as top:
        found = Place(Path(top)).unpack(data, max_bytes=2**20)
    assert len(found.problems) <= MAX_PROBLEMS + 2
    for problem in found.problems:
        str(problem).encode()


SEEDS = [
    zipped(*GOOD.items()),
    GOOD_TAR,
    tarred(*(member(name, data) for name, data in GOOD.items()), kind=tarfile.GNU_FORMAT),
    gzip.compress(GOOD_TAR),
    pax(b"16 path=a\0b.png\n") + TWO_TARRED,
]


def mutated(seed: bytes, changes: Iterable[tuple[float, bytes, bool]]) -> bytes:
    data = bytearray(seed)
    for position, new, is_longer in changes:
        # Most from the ends, where headers are.
        start = int(position**3 * len(data)) * (-1 if new[:1] > b"\x7f" else 1)
        data[start : start if is_longer else start + len(new)] = new
    return bytes(data)


CHANGES = st.lists(
    st.tuples(st.floats(0, 1), st.binary(min_size=1, max_size=8), st.booleans()), max_size=5
)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.sampled_from(SEEDS), CHANGES, st.none() | st.integers(0, 5000))
def test_no_damage_escapes_the_folder(
    seed: bytes, changes: list[tuple[float, bytes, bool]], cut: int | None
) -> None:
    check_any(mutated(seed, changes)[:cut])


NAMES = st.one_of(
    st.text(max_size=20),
    st.lists(
        st.sampled_from(["..", ".", "", "a.png", "C:", "b.txt", "\0", "\udce9", "é"]), max_size=5
    ).map("/".join),
)
KINDS = st.sampled_from([bytes([kind]) for kind in (*range(0x30, 0x38), *b"ADKLMNSVXgxz\0")])


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.lists(st.tuples(NAMES, KINDS, st.integers(0, 600), st.binary(max_size=40)), max_size=5),
    st.booleans(),
)
def test_no_member_of_a_tar_escapes_the_folder(
    members: list[tuple[str, bytes, int, bytes]], is_gzip: bool
) -> None:
    data = b""
    for name, kind, size, content in members:
        info = tarfile.TarInfo(name)
        info.type, info.size, info.linkname = kind, size, "../secret.png"
        data += info.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogatepass")
        data += content.ljust(-(-size // 512) * 512, b"\0")
    data += bytes(1024)
    check_any(gzip.compress(data, 1) if is_gzip else data)
