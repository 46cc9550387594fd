"""Mutated datasets: whatever is in them, the answer is findings.

    python -P -m tests.tasks.data.fuzz [INPUTS] [--seed SEED]

Images, masks, captions, rows and archives are mutated at random, and read as a job's. An exception,
a decoder that ends, or an image that training reads differently is an error.
"""

import argparse
import io
import json
import random
import re
import tarfile
import tempfile
import zipfile
from pathlib import Path
from typing import Any

from PIL import Image

from tasks.data.decoding.images import image_digest, open_image
from tasks.data.formats import SUFFIXES
from tasks.data.read_policy import ReadPolicy
from tasks.data.sources import Sources
from tasks.data.validation import check_dataset
from tasks.jobs.job import parse_job
from tests.tasks.data.hostile import IMAGES, encoded, segment
from tests.tasks.data.profiles import ADOBE_RGB, gray_profile
from tests.tasks.data.test_formats import HEIC

SIDE = 32
_INTERESTING = (0, 1, 127, 128, 255, 256, 32767, 65535, 2**31 - 1, 2**31, 2**32 - 1)
_CAPTIONS = (
    "a red dog, side view",
    "caf\u00e9 \u200b\ufeff \U0001f600 <thing> {placeholder}",
    "## (cat:1.2) \\ \u202e\x07 'quoted' \"text\"",
)
_ARCHIVE_BYTES = 2**20
# What messages say of unexpected errors.
_INTERNAL = re.compile("Traceback|[a-z]Error|its decoder|cannot be read: ")


def seeds() -> list[bytes]:
    """Return an image of every kind that is decoded differently."""
    made = [make(SIDE) for make in IMAGES.values()]
    colors = Image.radial_gradient("L").resize((SIDE, SIDE)).convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = 6
    exif.get_ifd(0x8769)[0xA001] = 0xFFFF
    exif.get_ifd(0x8769)[0xA005] = {1: "R03"}
    frames = [colors.rotate(90), colors.rotate(180)]
    several = {"save_all": True, "append_images": frames}
    return [
        *made,
        HEIC,
        encoded(colors, "JPEG", exif=exif, icc_profile=ADOBE_RGB),
        encoded(colors.convert("L"), "PNG", exif=exif, icc_profile=gray_profile(1.0)),
        encoded(colors, "MPO", **several),
        encoded(colors, "WEBP", **several),
        encoded(colors, "AVIF", exif=exif, icc_profile=ADOBE_RGB),
        encoded(colors, "AVIF", **several),
        encoded(colors, "JPEG", comment=b"x" * 99)
        + segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0"),
    ]


class Mutator:
    """Mutates bytes at random."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def mutated(self, data: bytes) -> bytes:
        """Return the bytes with some changes; rarely without."""
        changed = bytearray(data)
        for _ in range(self._random.choice((0, 1, 1, 2, 4, 16))):
            if changed:
                self._change(changed, self._random.randrange(len(changed)))
        return bytes(changed)

    def choice(self, values: Any) -> Any:
        """Return one of the values."""
        return self._random.choice(values)

    def _change(self, data: bytearray, at: int) -> None:
        # Headers decide more than pixels.
        if self._random.random() < 0.5:
            at %= 64
        length = self._random.choice((1, 2, 4, 8, 64))
        match self._random.randrange(6):
            case 0:
                data[at] ^= 1 << self._random.randrange(8)
            case 1:
                size = self._random.choice((1, 2, 4))
                value = self._random.choice(_INTERESTING) % 256**size
                data[at : at + size] = value.to_bytes(size, self._random.choice(("big", "little")))
            case 2:
                data[at : at + length] = self._random.randbytes(length)
            case 3:
                del data[at : at + length]
            case 4:
                data[at:at] = data[at : at + length] * self._random.randrange(1, 4)
            case 5:
                del data[at + self._random.randrange(len(data)) :]


def fuzz_files(mutator: Mutator, count: int, folder: Path) -> None:
    """Check a folder of mutated images and captions, and rows of them with masks."""
    images = seeds()
    suffixes = sorted(SUFFIXES)
    rows = []
    for number in range(count):
        name = f"{number}{mutator.choice(suffixes)}"
        data = mutator.mutated(mutator.choice(images))
        (folder / name).write_bytes(data)
        (folder / f"{number}.txt").write_bytes(mutator.mutated(_caption(mutator)))
        row = {"image": name, "text": _caption(mutator).decode()}
        row["mask"] = f"{mutator.choice(range(count))}{mutator.choice(suffixes)}"
        rows.append(mutator.mutated(json.dumps(row).encode()))
    (folder / "rows.jsonl").write_bytes(b"\n".join(rows))
    _check(folder, {"type": "IMAGE_CAPTION_DIR_DATASET", "dataset_dir": str(folder)})
    rows_path = str(folder / "rows.jsonl")
    _check(folder, {"type": "IMAGE_CAPTION_JSONL_DATASET", "jsonl_path": rows_path}, use_masks=True)


def fuzz_archives(mutator: Mutator, count: int, folder: Path) -> None:
    """Check mutated archives."""
    image = IMAGES["png rgb"](SIDE)
    members = {"a.png": image, "a.txt": b"a cat", "sub/b.jpg": IMAGES["jpeg"](SIDE)}
    members["rows.jsonl"] = b'{"image": "a.png", "text": "a cat", "mask": "a.png"}\n'
    archives = [("a.zip", _zip(members)), ("a.tar", _tar(members, "w"))]
    archives.append(("a.tar.gz", _tar(members, "w:gz")))
    for number in range(count):
        name, data = mutator.choice(archives)
        path = folder / f"{number}-{name}"
        path.write_bytes(mutator.mutated(data))
        jsonl = {"jsonl": "rows.jsonl"} if mutator.choice((True, False)) else {}
        _check(folder, {"type": "ARCHIVE", "archive": str(path), **jsonl}, use_masks=bool(jsonl))


def _caption(mutator: Mutator) -> bytes:
    return str(mutator.choice(_CAPTIONS)).encode(mutator.choice(("utf-8", "utf-8-sig")))


def _check(folder: Path, dataset: dict[str, Any], **values: Any) -> None:
    """Check a dataset, and that nothing but findings comes of it."""
    loader = {"type": "IMAGE_CAPTION_SD_DATA_LOADER", "resolution": 64, "dataset": dataset}
    steps = {"max_train_steps": 1, "save_every_n_steps": 1, "train_batch_size": 1}
    training = {"type": "SDXL_LORA", **steps, "data_loader": loader, **values}
    config = parse_job({"training": training}).training
    with tempfile.TemporaryDirectory() as name:
        policy = ReadPolicy(max_bytes=_ARCHIVE_BYTES)
        sources = Sources(policy, folder / "downloads", Path(name))
        report = check_dataset(config, sources, limits=lambda _: [])
        for finding in (*report.problems, *report.warnings):
            assert not _INTERNAL.search(finding.message), finding
        images = {sample.image for sample in report.samples}
        for file in report.files:
            if file.image in images:
                assert image_digest(open_image(file.path.read_bytes())) == file.image, file


def _zip(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def _tar(members: dict[str, bytes], mode: Any) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def main() -> None:
    """Fuzz, and print how far it is."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("inputs", type=int, nargs="?", default=2000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    for start in range(0, arguments.inputs, 200):
        mutator = Mutator(arguments.seed + start)
        with tempfile.TemporaryDirectory() as name:
            fuzz_files(mutator, 90, Path(name))
            fuzz_archives(mutator, 20, Path(name))
        print(start + 200, flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
