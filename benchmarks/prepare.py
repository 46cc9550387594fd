"""Images per second that ``prepare`` checks and stores, relative to plain Pillow; and its memory.

    python -P benchmarks/prepare.py [IMAGES] [--report FILE]

JPEGs of 1024x1024 with captions are in one folder. One side decodes every image, rotates it, hashes
its pixels, compares it with all others and stores it; then it does so again, which hashes the files
only. The other runs ``Image.open(path).convert("RGB")`` in as many threads, or ``load()``, which
makes no copy of the image. Each measurement has its own process, because the heap of one would slow
the copies of the next. Results are images per second, and per second of processor time, which other
programs disturb less. Goal: 0.7 or more, and memory that does not grow with the images.
"""

import os
import random
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from benchmarks.results import parser_of, report_result
from tasks.data.ingest import ingest
from tasks.data.read_policy import ReadPolicy
from tasks.data.sources import Sources
from tasks.data.validation import Report, check_dataset
from tasks.jobs.job import parse_job
from tasks.store import Store

ROUNDS = 3
# Decoders are child processes.
_PROCESSES = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)


class Cost(NamedTuple):
    """Cost of a measurement: seconds, and seconds of processor time."""

    seconds: float
    cpu_seconds: float


def main() -> None:
    """Measure and print the ratios and the memory."""
    parser = parser_of(__doc__)
    parser.add_argument("images", type=int, nargs="?", default=1000)
    arguments = parser.parse_args()
    count = arguments.images
    with (
        tempfile.TemporaryDirectory() as name,
        ProcessPoolExecutor(1, mp_context=get_context("spawn"), max_tasks_per_child=1) as pool,
    ):
        paths = images_in(Path(name), count)
        few_mib = pool.submit(prepared, paths[: count // 10]).result()[-1]
        rounds = []
        for _ in range(ROUNDS):
            convert = pool.submit(decoded, paths, copied).result()
            load = pool.submit(decoded, paths, loaded).result()
            *ours, many_mib = pool.submit(prepared, paths).result()
            rounds.append((convert, load, *ours))
    lines = []
    for unit, place in (("a second", 0), ("a second of processor time", 1)):
        sides = [[cost[place] for cost in costs] for costs in zip(*rounds, strict=True)]
        rates = [f"{count / statistics.median(seconds):.1f}" for seconds in sides]
        convert_s, load_s, *checks = sides
        lines.append(
            f"images {unit}: Pillow's convert {rates[0]}, its load {rates[1]}, "
            f"checked {rates[2]}, checked and stored {rates[3]}, again {rates[4]}"
        )
        for what, seconds in zip(("checked", "checked and stored", "again"), checks, strict=True):
            lines.append(
                f"{what}, {unit}: ratio {ratio(convert_s, seconds):.3f} to convert, "
                f"{ratio(load_s, seconds):.3f} to load"
            )
    lines.append(
        f"peak memory: {few_mib:.0f} MiB with {count // 10} images, {many_mib:.0f} with {count}"
    )
    goal = "0.7 or more, memory that does not grow"
    report_result(
        arguments.report, "Prepare", f"python -P benchmarks/prepare.py {count}", goal, lines
    )


def ratio(plain: list[float], checks: list[float]) -> float:
    """Return the median of the rounds' ratios."""
    return statistics.median(one / other for one, other in zip(plain, checks, strict=True))


def images_in(folder: Path, count: int) -> list[Path]:
    """Write images with the noise of photographs."""
    draw, paths = random.Random(0), []
    for number in range(count):
        noise = Image.frombytes("RGB", (96, 96), draw.randbytes(27648)).resize((1024, 1024))
        paths.append(folder / f"{number:06}.jpg")
        noise.save(paths[-1], quality=90)
    return paths


def copied(image: Image.Image) -> None:
    """Decode an image as most programs do."""
    image.convert("RGB")


def loaded(image: Image.Image) -> None:
    """Decode an image without a copy."""
    image.load()


def decoded(paths: list[Path], decode: Callable[[Image.Image], None]) -> Cost:
    """Return the cost of decoding all images."""

    def work(path: Path) -> None:
        with Image.open(path) as image:
            decode(image)

    start = now()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for _ in pool.map(work, paths):
            pass
    return since(start)


def prepared(paths: list[Path]) -> tuple[Cost, Cost, Cost, float]:
    """Return the cost of checking, of checking and storing, of the same again, and the peak in MiB.

    The peak is that of one process.
    """
    with tempfile.TemporaryDirectory() as name:
        store = Store(Path(name).as_uri())
        start = now()
        report = checked(paths, store)
        check = since(start)
        ingest(report, store)
        whole = since(start)
        start = now()
        ingest(checked(paths, store), store)
        again = since(start)
    return check, whole, again, max(resource.getrusage(who).ru_maxrss for who in _PROCESSES) / 1024


def now() -> Cost:
    """Return the current clocks."""
    used = [resource.getrusage(who) for who in _PROCESSES]
    return Cost(time.perf_counter(), sum(usage.ru_utime + usage.ru_stime for usage in used))


def since(start: Cost) -> Cost:
    """Return the cost since then."""
    end = now()
    return Cost(end.seconds - start.seconds, end.cpu_seconds - start.cpu_seconds)


def checked(paths: list[Path], store: Store) -> Report:
    """Check these images of a folder."""
    folder = paths[0].parent
    rows = "\n".join(
        f'{{"image": "{path.name}", "text": "image {number}"}}' for number, path in enumerate(paths)
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
    sources = Sources(ReadPolicy(), folder / "downloads", folder / "scratch")
    report = check_dataset(config, sources, limits=lambda _: [], store=store)
    if len(report.samples) != len(paths) or report.problems:
        raise AssertionError(str(report.problems[:3]))
    return report


if __name__ == "__main__":
    main()
