import gzip
import io
import random
import stat
import struct
import tarfile
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tasks.data.archives import Unpacked, unpack

# Archives are unpacked without reading a picture, so any bytes do; these do not shrink.
PICTURE = random.Random(0).randbytes(3000)
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
    name: str, data: bytes = PICTURE, kind: bytes = tarfile.REGTYPE, link: str = ""
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
    """Change a byte of the first picture, which both kinds of archives begin with."""
    data[700] ^= 0xFF


class Place:
    """A folder to unpack into, with a secret beside it that must stay as it is."""

    def __init__(self, top: Path) -> None:
        self.top = top
        self.folder = top / "unpacked"
        self.archive = top / "data.bin"
        (top / "secret.png").write_bytes(b"secret")

    def unpack(self, data: bytes, most_bytes: int = MOST) -> Unpacked:
        """Unpack, and prove that the folder holds what was told, and nothing else was touched."""
        self.archive.write_bytes(data)
        found = unpack(self.archive, self.folder, most_bytes=most_bytes)
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


def told(found: Unpacked) -> list[str]:
    return [str(fault) for fault in found.faults]


GOOD = {"cats/b.PNG": PICTURE, "cats/b.txt": b"a cat", "a.jpg": b"", "café.webp": PICTURE}
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
def test_a_good_archive_is_unpacked_by_its_content_into_numbered_files(
    place: Place, data: bytes
) -> None:
    found = place.unpack(data)
    assert (found.faults, found.unused) == ([], 0)
    assert read(found) == GOOD
    assert list(found.files) == ["a.jpg", "café.webp", "cats/b.PNG", "cats/b.txt"]
    assert {name: path.name for name, path in found.files.items()} == {
        "cats/b.PNG": "00000001.png",
        "cats/b.txt": "00000002.txt",
        "a.jpg": "00000003.jpg",
        "café.webp": "00000004.webp",
    }


def test_folders_and_what_desktops_add_are_left_out(place: Place) -> None:
    names = ["__MACOSX/._a.png", ".DS_Store", "x/.hidden.png", "x/Thumbs.db", "README.md"]
    found = place.unpack(
        zipped(("x/", b""), ("./x//a.png", PICTURE), *((name, b"x") for name in names))
    )
    assert (list(found.files), found.faults, found.unused) == (["x/a.png"], [], 5)
    place.folder.joinpath("00000001.png").unlink()
    found = place.unpack(
        tarred(
            member("./", b"", tarfile.DIRTYPE),
            member("./x", b"", tarfile.DIRTYPE),
            *(member(name, PICTURE) for name in names),
            member("./x/a.png"),
        )
    )
    assert (list(found.files), found.faults, found.unused) == (["x/a.png"], [], 5)


def test_a_zips_utf8_name_is_read_though_it_is_not_marked_as_such(place: Place) -> None:
    # As macOS writes them; the same length, so nothing else moves.
    data = zipped(("caf__.png", PICTURE)).replace(b"caf__", "café".encode())
    assert list(place.unpack(data).files) == ["café.png"]
    place.folder.joinpath("00000001.png").unlink()
    data = zipped(("caf_.png", PICTURE)).replace(b"caf_", "café".encode("cp437"))
    assert list(place.unpack(data).files) == ["café.png"]


def test_long_names_and_global_headers_of_tars_are_understood(place: Place) -> None:
    name = "/".join(["folder" * 20] * 3) + "/ä.png"
    for kind in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
        found = place.unpack(tarred(member(name), kind=kind))
        assert (read(found), found.faults) == ({name: PICTURE}, [])
        found.files[name].unlink()
    comment = b"14 comment=ab\n"
    block = header("pax_global_header", len(comment), tarfile.XGLTYPE)
    found = place.unpack(block + comment + bytes(512 - len(comment)) + tarred(member("a.png")))
    assert (list(found.files), found.faults) == (["a.png"], [])


BAD_NAMES = [
    ("/etc/evil.png", "has an absolute path"),
    ("C:/evil.png", "has an absolute path"),
    ("C:evil.png", "has an absolute path"),
    ("../secret.png", "goes up by '..'"),
    ("x/../../secret.png", "goes up by '..'"),
    ("../README.md", "goes up by '..'"),
    ("..\\secret.png", "has a backslash"),
    ("a\nb.png", "has a control character"),
    ("a\x1b[2Jb.png", "has a control character"),
    ("a\x85b.png", "has a control character"),
    ("a" * 1100 + ".png", "has a name of over 1024 bytes"),
    ("deep.tar.gz", "is an archive in an archive"),
    ("deep.ZIP", "is an archive in an archive"),
]


@pytest.mark.parametrize(("name", "problem"), BAD_NAMES)
def test_a_bad_name_is_told_and_the_others_still_unpacked(
    place: Place, name: str, problem: str
) -> None:
    good = tarred(member(name), member("ok.png"))
    for data in (zipped((name, PICTURE), ("ok.png", PICTURE)), good, gzip.compress(good)):
        found = place.unpack(data)
        assert list(found.files) == ["ok.png"]
        [message] = told(found)
        assert f": {problem}" in message
        assert message.isprintable()
        assert len(message) < 400
        found.files["ok.png"].unlink()


def encrypted(data: bytearray) -> None:
    in_directory(8, b"\x01\x00")(data)


BAD_MEMBERS = {
    "zip NUL": (
        zipped(("a_.png.sh.png", PICTURE), ("ok.png", b"")).replace(b"a_.png.sh", b"a\0.png.sh"),
        "a\ufffd.png.sh.png: has a control character in its name; rename it",
    ),
    "tar NUL": (
        pax(b"16 path=a\0b.png\n") + tarred(member("x.png"), member("ok.png", b"")),
        "a\ufffdb.png: has a control character in its name; rename it",
    ),
    "tar not UTF-8": (
        tarred(member("caf\udce9.png"), member("ok.png", b"")),
        "caf\ufffd.png: has a name that is not UTF-8; rename it",
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
        "a.png: is a device or pipe, not a file; leave it out",
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
        "a.png: is a device or pipe, not a file; leave it out",
    ),
    "tar pipe": (
        tarred(member("a.png", kind=tarfile.FIFOTYPE), member("ok.png", b"")),
        "a.png: is a device or pipe, not a file; leave it out",
    ),
    "tar unknown": (
        header("a.png", 600, b"V") + bytes(1024) + tarred(member("ok.png", b"")),
        "a.png: is of an unknown kind (b'V'); pack it as a plain file",
    ),
    "tar sparse": (
        # Its map goes on in a block of its own; its data are a third one.
        patched_sparse := b"",
        "",
    ),
    "tar pax sparse": (
        pax(b"25 GNU.sparse.size=99999\n") + tarred(member("a.png"), member("ok.png", b"")),
        "a.png: is packed as a sparse file; pack it without --sparse",
    ),
    "zip encrypted": (
        patched(zipped(("a.png", PICTURE), ("ok.png", b"")), encrypted),
        "a.png: is encrypted; pack it without a password",
    ),
    "zip bzip2": (
        zipped(("a.png", PICTURE), (zipfile.ZipInfo("ok.png"), b""), compression=zipfile.ZIP_BZIP2),
        "a.png: is not compressed by 'deflate'; pack it with that, or without compression",
    ),
    "zip twice": (
        zipped(("ok.png", b""), ("./ok.png", PICTURE)),
        "./ok.png: is in the archive twice; leave one of them out",
    ),
    "tar twice": (
        tarred(member("ok.png", b""), member("ok.png")),
        "ok.png: is in the archive twice; leave one of them out",
    ),
    "zip huge": (
        patched(
            zipped(("a.png", PICTURE), ("ok.png", b"")),
            in_directory(24, struct.pack("<L", 2**29 + 1)),
        ),
        "a.png: has over 512 MiB; no picture needs as much",
    ),
    "zip checksum": (
        patched(
            zipped(("a.png", PICTURE), ("ok.png", b""), compression=zipfile.ZIP_STORED), flipped
        ),
        "a.png: is damaged or cut off (Bad CRC-32 for file 'a.png'); pack it again",
    ),
    "zip deflate": (
        patched(zipped(("a.png", PICTURE), ("ok.png", b"")), lambda data: data.__setitem__(35, 7)),
        "a.png: is damaged or cut off (Error -3 while decompressing data: invalid block type); "
        "pack it again",
    ),
    "zip short": (
        patched(
            zipped(("a.png", PICTURE), ("ok.png", b"")), in_directory(24, struct.pack("<L", 4000))
        ),
        "a.png: is damaged or cut off (it ends too soon); pack it again",
    ),
    "zip offset": (
        patched(
            zipped(("a.png", PICTURE), ("ok.png", b"")), in_directory(42, struct.pack("<L", 2**31))
        ),
        "a.png: is damaged or cut off (Truncated file header); pack it again",
    ),
}
