"""Formats of the files in datasets, by suffix and first bytes: which are read, and which not.

Everything that admits, refuses or names an image asks this table.
"""

from dataclasses import dataclass, field
from posixpath import splitext

START_BYTES = 256
"""The bytes at a file's start that ``format_of_data`` needs at most."""


@dataclass(frozen=True)
class FileFormat:
    """A format of images, or of what people keep beside them.

    Attributes:
        name: As messages name it.
        suffixes: The suffixes of its files, lower case.
        decoder: Pillow's name of its decoder; empty if it is not read.
        starts: What its files begin with.
        article: The name's article.
        remedy: What to do with a file that is not read.
    """

    name: str
    suffixes: tuple[str, ...]
    decoder: str = ""
    starts: tuple[bytes, ...] = field(default=(), kw_only=True)
    article: str = field(default="a", kw_only=True)
    remedy: str = field(default="save it as PNG", kw_only=True)

    @property
    def refusal(self) -> str:
        """What messages report of a file that is not read."""
        return f"is {self.article} {self.name}, which is not read"


# Formats that are usual for photographs and drawings, with widely fuzzed decoders. A JPEG may hold
# several images, as phones write them: its first one is read.
JPEG = FileFormat(
    "JPEG",
    (".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".pjpeg", ".pjp", ".mpo"),
    "JPEG",
    starts=(b"\xff\xd8\xff",),
)
PNG = FileFormat("PNG", (".png", ".apng"), "PNG", starts=(b"\x89PNG\r\n\x1a\n",))
WEBP = FileFormat("WEBP", (".webp",), "WEBP")
BMP = FileFormat("BMP", (".bmp", ".dib"), "BMP", starts=(b"BM",))
AVIF = FileFormat("AVIF", (".avif", ".avifs"), "AVIF", article="an")
HEIF = FileFormat("HEIF", (".heic", ".heif", ".hif", ".heics", ".heifs"), "HEIF")
READ = (JPEG, PNG, WEBP, BMP, AVIF, HEIF)

GIF = FileFormat("GIF", (".gif",), starts=(b"GIF8",))
JPEG_XL = FileFormat("JPEG XL", (".jxl",), starts=(b"\xff\x0a", b"\x00\x00\x00\x0cJXL \r\n\x87\n"))
RAW = FileFormat(
    "camera RAW file",
    (
        *(".dng", ".raw", ".cr2", ".cr3", ".crw", ".nef", ".nrw", ".arw", ".srf", ".sr2", ".orf"),
        *(".rw2", ".raf", ".pef", ".srw", ".x3f", ".3fr", ".fff", ".iiq", ".erf", ".kdc", ".dcr"),
        *(".mrw", ".mef", ".mos", ".rwl", ".gpr"),
    ),
    # Others begin as a TIFF does.
    starts=(b"FUJIFILMCCD-RAW", b"II*\0\x10\0\0\0CR", b"IIU\0", b"IIRO", b"FOVb"),
    remedy="export it as JPEG or PNG",
)
TIFF = FileFormat("TIFF", (".tif", ".tiff"), starts=(b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"))
VIDEO = FileFormat(
    "video",
    (".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv", ".3gp", ".mts"),
    starts=(b"\x1aE\xdf\xa3", b"\x00\x00\x01\xba"),
    remedy="save its frames as PNG",
)
APPLE_DOUBLE = FileFormat(
    "AppleDouble file of macOS",
    (),
    starts=(b"\x00\x05\x16\x07", b"\x00\x05\x16\x00"),
    article="an",
    remedy="leave it out; 'dot_clean' removes such files",
)
NOT_READ = (
    GIF,
    JPEG_XL,
    RAW,  # before TIFF, whose first bytes some share
    TIFF,
    VIDEO,
    APPLE_DOUBLE,
    FileFormat(
        "JPEG 2000",
        (".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx", ".jpm"),
        starts=(b"\x00\x00\x00\x0cjP  ", b"\xff\x4f\xff\x51"),
    ),
    FileFormat("JPEG XR", (".jxr", ".wdp", ".hdp"), starts=(b"II\xbc",)),
    FileFormat("Photoshop file", (".psd", ".psb"), starts=(b"8BPS",)),
    FileFormat("GIMP file", (".xcf",), starts=(b"gimp xcf",)),
    FileFormat("Krita file", (".kra",)),
    FileFormat("Clip Studio file", (".clip",), starts=(b"CSFCHUNK",)),
    FileFormat("PaintTool SAI file", (".sai", ".sai2")),
    FileFormat("Affinity file", (".afphoto", ".afdesign")),
    FileFormat("SVG", (".svg", ".svgz"), starts=(b"<svg", b"<?xml"), article="an"),
    FileFormat("PDF", (".pdf",), starts=(b"%PDF",)),
    FileFormat(
        "PostScript file",
        (".eps", ".ps", ".ai"),
        starts=(b"%!PS", b"\xc5\xd0\xd3\xc6"),
    ),
    FileFormat("QOI", (".qoi",), starts=(b"qoif",)),
    FileFormat("TGA", (".tga",)),
    FileFormat("DDS texture", (".dds",), starts=(b"DDS ",)),
    FileFormat("Windows icon", (".ico", ".cur"), starts=(b"\0\0\1\0", b"\0\0\2\0")),
    FileFormat("Apple icon", (".icns",), starts=(b"icns",), article="an"),
    FileFormat("OpenEXR image", (".exr",), starts=(b"\x76\x2f\x31\x01",), article="an"),
    FileFormat("Radiance HDR image", (".hdr",), starts=(b"#?RADIANCE", b"#?RGBE")),
    FileFormat(
        "Netpbm image",
        (".ppm", ".pgm", ".pbm", ".pnm", ".pam", ".pfm"),
        starts=(b"P1\n", b"P2\n", b"P3\n", b"P4\n", b"P5\n", b"P6\n", b"P7\n"),
    ),
    FileFormat("PCX", (".pcx",), starts=(b"\x0a\x05\x01",)),
    FileFormat("FLIF", (".flif",), starts=(b"FLIF",)),
    FileFormat("BPG", (".bpg",), starts=(b"BPG\xfb",)),
    FileFormat("XPM", (".xpm",), starts=(b"/* XPM */",), article="an"),
)

# What a failed download leaves in an image's place.
NO_IMAGES = (
    FileFormat(
        "web page",
        (),
        starts=(b"<!DOCTYPE html", b"<!doctype html", b"<html"),
        remedy="download the image itself",
    ),
    FileFormat(
        "pointer of Git LFS",
        (),
        starts=(b"version https://git-lfs",),
        remedy="fetch the image with 'git lfs pull'",
    ),
)

SUFFIXES = frozenset(suffix for it in READ for suffix in it.suffixes)
"""The suffixes of the images that are read, lower case."""
READ_NAMES = ", ".join(it.name for it in READ)
"""The formats that are read, for messages."""
_BY_SUFFIX = {suffix: it for it in (*READ, *NOT_READ) for suffix in it.suffixes}
# Brands of the ISO base media file format, to which AVIF, HEIF and videos belong.
_BRANDS = {
    AVIF: (b"avif", b"avis"),
    HEIF: (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"),
    RAW: (b"crx ",),
    JPEG_XL: (b"jxl ",),
}
_GENERAL_BRANDS = (b"mif1", b"mif2", b"msf1", b"miaf")


def format_of_name(name: str) -> FileFormat | None:
    """Return the format of a file name's suffix; None if no image has it."""
    return _BY_SUFFIX.get(splitext(name)[1].lower())


def format_of_data(start: bytes) -> FileFormat | None:
    """Return the format of a file by its first ``START_BYTES``; None if it is unknown."""
    if start[4:8] == b"ftyp":
        return _format_of_brands(start)
    if start[:4] == b"RIFF":
        return {b"WEBP": WEBP, b"AVI ": VIDEO}.get(start[8:12])
    for each in (*READ, *NOT_READ, *NO_IMAGES):
        if start.startswith(each.starts):
            return each
    return None


def _format_of_brands(start: bytes) -> FileFormat:
    length = int.from_bytes(start[:4])
    major, others = start[8:12], start[16:length]
    compatible = [others[at : at + 4] for at in range(0, len(others), 4)]
    # A general major brand leaves it to the compatible brands.
    brands = compatible if major in _GENERAL_BRANDS else [major]
    for each, names in _BRANDS.items():
        if any(brand in names for brand in brands):
            return each
    return HEIF if major in _GENERAL_BRANDS else VIDEO
