"""Seconds and memory that the worst known inputs cost, with this code and with an earlier commit.

    python -P benchmarks/worst_inputs.py [CASE ...] [--before COMMIT] [--report FILE]

Each case makes a small input that is expensive to read, and is read as a worker reads it, in a
process that is ended after two minutes. The memory is the sum of the peaks of that process and of
all that it starts. Goal: less than 3 GiB, and the limits of docs/security.md.

A case is a function ``case_...`` that writes an input into a folder and returns what to read: a
``dataset`` of a job's configuration, a ``parquet`` file of a Hub dataset, or a job's ``document``.
"""

import io
import json
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from benchmarks.results import parser_of, write_section

MIB = 2**20
LIMIT_S = 120.0
GOAL = "every input is read or refused in less than 3 GiB, within the limits of docs/security.md"
ROOT = Path(__file__).parent.parent


def case_jpeg_of_400_scans(folder: Path) -> dict[str, Any]:
    """A progressive JPEG of 16384x16384 with 400 scans: a pass over all pixels for each."""
    return image(folder, hostile().jpeg_of_scans(16384, 400), "jpg")


def case_jpeg_of_100_scans(folder: Path) -> dict[str, Any]:
    """The same with 100 scans, which are allowed."""
    return image(folder, hostile().jpeg_of_scans(16384, 100), "jpg")


def case_palette_with_transparency(folder: Path) -> dict[str, Any]:
    """A PNG of 12000x12000 with a transparent palette."""
    return image(folder, hostile().IMAGES["png palette tRNS"](12000), "png")


def case_rgba_of_16_bits(folder: Path) -> dict[str, Any]:
    """A PNG of 12000x12000 with 16 bits a channel and transparency."""
    return image(folder, hostile().IMAGES["png rgba 16"](12000), "png")


def case_six_large_masks(folder: Path) -> dict[str, Any]:
    """Six images of 32x32 with masks of 8000x8000, with a transparent palette."""
    make = hostile()
    (folder / "mask.png").write_bytes(make.IMAGES["png palette tRNS"](8000))
    rows = []
    for number in range(6):
        (folder / f"{number}.png").write_bytes(make.IMAGES["png rgb"](32))
        rows.append({"image": f"{number}.png", "text": "a", "mask_image": "mask.png"})
    return jsonl(folder, "\n".join(map(json.dumps, rows)))


def case_large_webp(folder: Path) -> dict[str, Any]:
    """A lossless WebP of 12000x12000."""
    return image(folder, hostile().IMAGES["webp lossless"](12000), "webp")


def case_parquet_of_zeros(folder: Path) -> dict[str, Any]:
    """A parquet file of 8 rows with 150 MB of zeros each."""
    import pyarrow
    import pyarrow.parquet

    images = [{"bytes": bytes(150_000_000), "path": "a.png"}] * 8
    table = pyarrow.table({"image": images, "text": ["a"] * 8})
    file = folder / "train.parquet"
    pyarrow.parquet.write_table(table, file, compression="zstd", use_dictionary=False)
    return {"parquet": str(file)}


def case_zip_of_zeros(folder: Path) -> dict[str, Any]:
    """A zip of 30 images with 100 MB of zeros each."""
    with zipfile.ZipFile(folder / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for number in range(30):
            archive.writestr(f"{number}.png", bytes(100_000_000))
    return {"dataset": {"type": "ARCHIVE", "archive": str(folder / "a.zip")}}


def case_zip_of_empty_members(folder: Path) -> dict[str, Any]:
    """A zip of 100,000 empty images."""
    with zipfile.ZipFile(folder / "a.zip", "w") as archive:
        for number in range(100_000):
            archive.writestr(f"{number}.png", b"")
    return {"dataset": {"type": "ARCHIVE", "archive": str(folder / "a.zip")}}


def case_tar_of_long_names(folder: Path) -> dict[str, Any]:
    """A tar.gz of 50,000 members whose names have 1000 bytes."""
    with tarfile.open(folder / "a.tar.gz", "w:gz", format=tarfile.GNU_FORMAT) as archive:
        for number in range(50_000):
            archive.addfile(tarfile.TarInfo(f"{number:06}" + "x" * 990 + ".png"), io.BytesIO())
    return {"dataset": {"type": "ARCHIVE", "archive": str(folder / "a.tar.gz")}}


def case_jsonl_of_many_rows(folder: Path) -> dict[str, Any]:
    """A JSONL file of 8 million rows, in 16 MB."""
    return jsonl(folder, "1\n" * 8_000_000)


def case_document_of_1000_keys(folder: Path) -> dict[str, Any]:
    """A job with 1,000 unknown options."""
    return document(folder, **dict.fromkeys(map(str, range(1000)), 1))


def case_document_of_8000_keys(folder: Path) -> dict[str, Any]:
    """A job with 8,000 unknown options."""
    return document(folder, **dict.fromkeys(map(str, range(8000)), 1))


def case_document_of_300000_keys(folder: Path) -> dict[str, Any]:
    """A job with 300,000 unknown options."""
    return document(folder, **dict.fromkeys(map(str, range(300_000)), 1))


def case_document_of_a_long_name(folder: Path) -> dict[str, Any]:
    """A job with a name of 5 MB."""
    return document(folder, name="x" * 5_000_000)


def hostile() -> Any:
    """Return the maker of hostile files, which earlier commits do not have."""
    from tests.tasks.data import hostile

    return hostile


def image(folder: Path, data: bytes, suffix: str) -> dict[str, Any]:
    """Write a dataset of one image."""
    (folder / f"a.{suffix}").write_bytes(data)
    (folder / "a.txt").write_text("a caption", "utf-8")
    return {"dataset": {"type": "IMAGE_CAPTION_DIR_DATASET", "dataset_dir": str(folder)}}


def jsonl(folder: Path, rows: str) -> dict[str, Any]:
    """Write a dataset of rows."""
    path = folder / "rows.jsonl"
    path.write_text(rows, "utf-8")
    dataset = {"type": "IMAGE_CAPTION_JSONL_DATASET", "jsonl_path": str(path)}
    return {"dataset": dataset | {"mask_column": "mask_image"}}


def document(folder: Path, **values: Any) -> dict[str, Any]:
    """Write a job's document."""
    path = folder / "job.json"
    path.write_text(json.dumps({"training": {"type": "FLUX_LORA"}, **values}), "utf-8")
    return {"document": str(path)}


def read(what: dict[str, Any]) -> str:
    """Read an input as a worker does, and return what is found."""
    if "document" in what:
        return _read_document(Path(what["document"]))
    if "parquet" in what:
        return _read_parquet(Path(what["parquet"]))
    return _read_dataset(what["dataset"])


def _read_document(path: Path) -> str:
    from tasks.errors import InvalidJobError
    from tasks.jobs.job import parse_job

    try:
        parse_job(json.loads(path.read_bytes()))
    except InvalidJobError as error:
        first = str(error.problems[0])[:100]
        return f"refused in {len(str(error)):,} characters: {first}"
    return "a job"


def _read_parquet(path: Path) -> str:
    from types import SimpleNamespace

    from huggingface_hub import hf_api

    from tasks.data.hub import fetch_hub
    from tasks.jobs.datasets import HFHubImageCaptionDatasetConfig

    make_file: Any = hf_api.RepoFile
    listed = make_file(path="default/train/0.parquet", size=path.stat().st_size, oid="0")
    hub: Any = SimpleNamespace(
        dataset_info=lambda *_, **__: SimpleNamespace(sha="0" * 40),
        list_repo_tree=lambda *_, **__: [listed],
        hf_hub_download=lambda *_, **__: str(path),
    )
    config = HFHubImageCaptionDatasetConfig.model_construct(dataset_name="owner/name")
    rows = fetch_hub(config, path.parent, captions=True, max_bytes=50 * 2**30, hub=hub)
    return str(rows.problems[0]) if rows.problems else f"{len(rows.files)} rows"


def _read_dataset(dataset: dict[str, Any]) -> str:
    from tasks.data.read_policy import ReadPolicy
    from tasks.data.sources import Sources
    from tasks.data.validation import check_dataset
    from tasks.jobs.job import parse_job

    training = {
        "type": "SDXL_LORA",
        "max_train_steps": 1,
        "save_every_n_steps": 1,
        "train_batch_size": 1,
        "use_masks": "mask_column" in dataset,
        "data_loader": {
            "type": "IMAGE_CAPTION_SD_DATA_LOADER",
            "resolution": 1024,
            "dataset": dataset,
        },
    }
    config = parse_job({"training": training}).training
    with tempfile.TemporaryDirectory() as scratch:
        sources = Sources(ReadPolicy(), Path(scratch) / "downloads", Path(scratch) / "scratch")
        report = check_dataset(config, sources, limits=lambda _: [])
    return str(report.problems[0]) if report.problems else f"{len(report.samples)} images"


CASES: dict[str, Callable[[Path], dict[str, Any]]] = {
    name.removeprefix("case_"): function
    for name, function in list(globals().items())
    if name.startswith("case_")
}


def main() -> None:
    """Measure the cases, and print their table."""
    parser = parser_of(__doc__)
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"all of {', '.join(CASES)}")
    parser.add_argument("--before", help="measure a commit, too")
    arguments = parser.parse_args()
    before = arguments.before
    head = ["input", "bytes", *([f"at {before[:7]}"] if before else []), "now", "finding"]
    rows = [head, ["---"] * len(head)]
    with tempfile.TemporaryDirectory() as name:
        roots = [ROOT]
        if before:
            roots.insert(0, extracted(before, Path(name) / "before"))
        for case in arguments.cases or CASES:
            folder = Path(name) / case
            folder.mkdir()
            what = CASES[case](folder)
            size = sum(path.stat().st_size for path in folder.iterdir())
            costs = [measured(what, root) for root in roots]
            cells = [cost for cost, _ in costs]
            text = (CASES[case].__doc__ or "").rstrip(".")
            rows.append([text, f"{size:,}", *cells, costs[-1][1]])
            print(*rows[-1], sep=" | ", flush=True)
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    if arguments.report:
        option = f" --before {before}" if before else ""
        made = f"`python -P benchmarks/worst_inputs.py{option}`, {os.cpu_count()} cores."
        section = f"## Worst inputs\n\n{made}\n\n{table}\n\n- Goal: {GOAL}\n"
        write_section(arguments.report, "worst inputs", section)


def extracted(commit: str, folder: Path) -> Path:
    """Return a folder with the code of a commit."""
    folder.mkdir()
    packed = subprocess.run(
        ["git", "archive", "--format=tar", commit], cwd=ROOT, check=True, capture_output=True
    )
    with tarfile.open(fileobj=io.BytesIO(packed.stdout)) as archive:
        archive.extractall(folder, filter="data")
    return folder


def measured(what: dict[str, Any], root: Path) -> tuple[str, str]:
    """Return what it costs to read an input with the code in a folder, and the finding."""
    command = [sys.executable, "-P", __file__, "--read", json.dumps(what)]
    start = time.monotonic()
    process = psutil.Popen(
        command, env=os.environ | {"PYTHONPATH": str(root)}, stdout=subprocess.PIPE, text=True
    )
    peaks: dict[int, float] = {}
    while process.poll() is None and time.monotonic() - start < LIMIT_S:
        peaks |= peaks_of(process)
        time.sleep(0.05)
    seconds = time.monotonic() - start
    cost = f"{seconds:.1f} s, {sum(peaks.values()):,.0f} MB"
    if process.poll() is None:
        for child in process.children(recursive=True):
            child.kill()
        process.kill()
        cost, finding = f"over {cost}", ""
    else:
        finding = process.stdout.read().strip()
    process.wait()
    return cost, finding.replace(str(root), "").replace("|", "/")[:150]


def peaks_of(process: psutil.Process) -> dict[int, float]:
    """Return the peak memory of a process and of those that it has started, in MB."""
    peaks = {}
    with suppress(psutil.NoSuchProcess, FileNotFoundError):
        for one in [process, *process.children(recursive=True)]:
            status = Path(f"/proc/{one.pid}/status").read_text("utf-8")
            if found := re.search(r"VmHWM:\s+(\d+)", status):
                peaks[one.pid] = int(found[1]) / 1000
    return peaks


if __name__ == "__main__":
    if sys.argv[1:2] == ["--read"]:
        print(read(json.loads(sys.argv[2])))
    else:
        main()
