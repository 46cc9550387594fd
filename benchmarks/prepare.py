"""What ``prepare`` checks and stores a second over what plain Pillow decodes; and its memory.

    python -P benchmarks/prepare.py [IMAGES] [--report FILE]

JPEGs of 1024x1024 with captions, in one folder, on all cores both times: every picture decoded,
turned, hashed by its pixels and compared with all others, then stored, against
``Image.open(path).convert("RGB")`` in as many threads. That copies each picture, which costs little
or much as the process's heap happens to lie; so also against ``load()``, which copies nothing. In
pictures a second, and a second of processor time, which other work on the machine disturbs less.
Goal: 0.7 or more, and memory that does not grow with the number of pictures.
"""

import os
import random
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from PIL import Image

from benchmarks.results import parser_of, tell
from tasks.data.access import Access
from tasks.data.checks import Report, check_data_set
from tasks.data.ingest import ingest
from tasks.data.sources import Sources
from tasks.jobs.job import parse_job
from tasks.store import Store

ROUNDS = 5
_Made = TypeVar("_Made")


def main() -> None:
    """Print the ratios and the memory."""
    parser = parser_of(__doc__)
    parser.add_argument("images", type=int, nargs="?", default=2000)
    arguments = parser.parse_args()
    count = arguments.images
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = pictures_in(folder, count)
        stored(checked(folder, paths[: count // 10]))
        few = peak_mib()
        rounds = [one_round(folder, paths) for _ in range(ROUNDS)]
        many = peak_mib()
    lines = []
    for place, unit in enumerate(("a second", "a second of processor time")):
        convert, load, check, store = (
            [kind[place] for kind in it] for it in zip(*rounds, strict=True)
        )
        whole = [sum(pair) for pair in zip(check, store, strict=True)]
        lines.append(
            f"pictures {unit}: Pillow's convert {rate(count, convert)}, its load "
            f"{rate(count, load)}, checked {rate(count, check)}, checked and stored "
            f"{rate(count, whole)}"
        )
        lines.append(
            f"ratio, checked: {ratio(convert, check)} of convert, {ratio(load, check)} of load; "
            f"and stored: {ratio(convert, whole)} of convert, {ratio(load, whole)} of load"
        )
    lines.append(f"peak memory: {few:.0f} MiB with {count // 10} pictures, {many:.0f} with {count}")
    goal = "0.7 or more, memory that does not grow"
    tell(arguments.report, "Prepare", f"python -P benchmarks/prepare.py {count}", goal, lines)


def one_round(folder: Path, paths: list[Path]) -> list[tuple[float, float]]:
    """Seconds, and of processor time, of converting, loading, checking and storing."""
    convert, _ = timed(lambda: decoded(paths, lambda image: image.convert("RGB")))
    load, _ = timed(lambda: decoded(paths, lambda image: image.load()))
    check, report = timed(lambda: checked(folder, paths))
    store, _ = timed(lambda: stored(report))
    return [convert, load, check, store]


def timed(function: Callable[[], _Made]) -> tuple[tuple[float, float], _Made]:
    """Seconds, seconds of processor time, and what was made."""
    start = time.perf_counter(), time.process_time()
    made = function()
    return (time.perf_counter() - start[0], time.process_time() - start[1]), made


def rate(count: int, seconds: list[float]) -> str:
    """How many a second; the median of the rounds."""
    return f"{count / statistics.median(seconds):.1f}"


def ratio(plain: list[float], ours: list[float]) -> str:
    """The median of the rounds' ratios."""
    pairs = zip(plain, ours, strict=True)
    return f"{statistics.median(one / other for one, other in pairs):.3f}"


def pictures_in(folder: Path, count: int) -> list[Path]:
    """Pictures as noisy as photographs."""
    draw, paths = random.Random(0), []
    for number in range(count):
        noise = Image.frombytes("RGB", (96, 96), draw.randbytes(27648)).resize((1024, 1024))
        paths.append(folder / f"{number:06}.jpg")
        noise.save(paths[-1], quality=90)
    return paths


def decoded(paths: list[Path], decode: Callable[[Image.Image], object]) -> None:
    """Decode them all."""

    def work(path: Path) -> None:
        with Image.open(path) as image:
            decode(image)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for _ in pool.map(work, paths):
            pass


def checked(folder: Path, paths: list[Path]) -> Report:
    """Check these pictures of a folder."""
    rows = "\n".join(
        f'{{"image": "{path.name}", "text": "picture {number}"}}'
        for number, path in enumerate(paths)
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
    report = check_data_set(config, sources, limits=lambda _: [])
    if len(report.samples) != len(paths) or report.faults:
        raise AssertionError(str(report.faults[:3]))
    return report


def stored(report: Report) -> None:
    """Store them in an empty folder."""
    with tempfile.TemporaryDirectory() as name:
        ingest(report, Store(Path(name).as_uri()))


def peak_mib() -> float:
    """The most memory that this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
