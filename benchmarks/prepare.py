"""What ``prepare`` checks a second over what plain Pillow decodes, as a ratio; and its memory.

    python -P benchmarks/prepare.py [IMAGES]

JPEGs of 1024x1024 with captions, in one folder, on all cores both times: every picture decoded,
turned, hashed by its pixels and compared with all others, against ``Image.open(path).convert`` in
as many threads. Goal: 0.7 or more, and memory that does not grow with the number of pictures.
"""

import os
import random
import resource
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from PIL import Image

from tasks.data.access import Access
from tasks.data.checks import check_data_set
from tasks.data.sources import Sources
from tasks.jobs.job import parse_job

ROUNDS = 3


def main() -> None:
    """Print the ratio and the memory."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 2000
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = pictures_in(folder, count)
        checked(folder, paths[: count // 10])
        few = peak_mib()
        rounds = [(decoded(paths), checked(folder, paths)) for _ in range(ROUNDS)]
        plain, whole = (min(seconds) for seconds in zip(*rounds, strict=True))
    print(
        f"{count} pictures: Pillow {count / plain:.1f}/s, prepare {count / whole:.1f}/s, "
        f"ratio {plain / whole:.3f}; peak memory {few:.0f} MiB with a tenth of them, "
        f"{peak_mib():.0f} MiB with all"
    )


def pictures_in(folder: Path, count: int) -> list[Path]:
    """Pictures as noisy as photographs, each with its caption."""
    draw, paths = random.Random(0), []
    for number in range(count):
        noise = Image.frombytes("RGB", (96, 96), draw.randbytes(27648)).resize((1024, 1024))
        paths.append(folder / f"{number:06}.jpg")
        noise.save(paths[-1], quality=90)
        paths[-1].with_suffix(".txt").write_text(f"picture {number}", "utf-8")
    return paths


def decoded(paths: list[Path]) -> float:
    """Seconds of decoding them all."""

    def decode(path: Path) -> None:
        with Image.open(path) as image:
            image.convert("RGB")

    start = time.perf_counter()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for _ in pool.map(decode, paths):
            pass
    return time.perf_counter() - start


def checked(folder: Path, paths: list[Path]) -> float:
    """Seconds of checking these pictures of a folder."""
    rows = "\n".join(
        f'{{"image": "{path.name}", "text": "{path.with_suffix(".txt").read_text("utf-8")}"}}'
        for path in paths
    )
    (folder / "rows.jsonl").write_text(rows, "utf-8")
    dataset = {"type": "IMAGE_CAPTION_JSONL_DATASET", "jsonl_path": str(folder / "rows.jsonl")}
    training = {
        "type": "SDXL_LORA",
        "max_train_steps": 1,
        "save_every_n_steps": 1,
        "train_batch_size": 1,
        "data_loader": {
            "type": "IMAGE_CAPTION_SD_DATA_LOADER",
            "resolution": 1024,
            "dataset": dataset,
        },
    }
    config = parse_job({"training": training}).training
    sources = Sources(Access(), folder / "downloads", folder / "scratch")
    start = time.perf_counter()
    report = check_data_set(config, sources, limits=lambda _: [])
    seconds = time.perf_counter() - start
    if len(report.samples) != len(paths) or report.faults:
        raise AssertionError(str(report.faults[:3]))
    return seconds


def peak_mib() -> float:
    """The most memory that this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
