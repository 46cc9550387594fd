"""Time and memory of the cache index of large datasets, for each entry.

    OMP_NUM_THREADS=1 python -P -m benchmarks.cache_scale [ENTRIES ...] [--report FILE]

Half of the entries are of captions, half of images. Each size runs in its own process, which reads
the dataset, plans its entries, finds them in the fleet's index on a real broker, and writes the
job's index; another one reads that as a trainer does. Goal: all constant.
"""

import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

from pydantic_core import to_json

from benchmarks.results import parser_of, report_result
from tasks.cache.index import PackIndex
from tasks.cache.plan import CachePlan
from tasks.dataset import Dataset, Sample, dataset_of
from tasks.events import EncoderDigests
from tasks.jobs.job import parse_job
from tasks.jobs.pipeline import PipelineConfig
from tasks.state.connection import connect
from tasks.store import PACKS, Store
from worker.local.embedded_broker import EmbeddedBroker

_HOUR = timedelta(hours=1)
# The entries of an encoder's batch.
_PACK = 8
_DATASET, _INDEX = "dataset.json", "index.json"


def main() -> None:
    """Measure and print."""
    parser = parser_of(__doc__)
    parser.add_argument("entries", type=int, nargs="*", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--step", nargs=3, help="measure one step, for this program itself")
    arguments = parser.parse_args()
    if arguments.step:
        step, folder, url = arguments.step
        print(json.dumps(_STEPS[step](Path(folder), url, arguments.entries[0])))
        return
    report_result(
        arguments.report,
        "Cache index of large datasets",
        f"python -P -m benchmarks.cache_scale {' '.join(map(str, arguments.entries))}",
        "microseconds and bytes of an entry do not grow with their number",
        map(_line, arguments.entries),
    )


def _line(entries: int) -> str:
    with tempfile.TemporaryDirectory() as name, EmbeddedBroker(Path(name)) as broker:
        measured: dict[str, dict[str, float]] = {}
        for step in _STEPS:
            command = [sys.executable, "-P", "-m", "benchmarks.cache_scale", str(entries)]
            command += ["--step", step, name, broker.url]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            measured |= json.loads(done.stdout)
        size = (Path(name) / _INDEX).stat().st_size
        broker_bytes = int(connect(broker.url).info("memory")["used_memory"])
    parts = ", ".join(f"{part} {cost['us']:.1f} us" for part, cost in measured.items())
    memory = {part: cost["mib"] for part, cost in measured.items() if cost["mib"]}
    peaks = ", ".join(
        f"{part} {mib:.0f} MiB ({mib * 2**20 / entries:.0f} bytes an entry)"
        for part, mib in memory.items()
    )
    return (
        f"{entries} entries, processor time of each: {parts}; memory at the peak: {peaks}; broker "
        f"{broker_bytes / entries:.0f} bytes an entry, index file {size / entries:.0f}"
    )


def _samples(count: int) -> Iterator[Sample]:
    for number in range(count):
        yield Sample(
            image=f"{number:064x}",
            width=768 + 64 * (number % 5),
            height=768,
            caption=f"a photo of thing {number} on a table, in daylight",
            source=f"{number:07d}.png",
        )


def _config() -> PipelineConfig:
    dataset = {"type": "IMAGE_CAPTION_DIR_DATASET", "dataset_dir": "/images"}
    training = {
        "model": "/model",
        "cache_vae_outputs": True,
        "data_loader": {"dataset": dataset},
    }
    return parse_job({"preset": "flux_lora_1x40gb", "training": training}).training


def _write_dataset(folder: Path, url: str, entries: int) -> dict[str, dict[str, float]]:
    dataset = dataset_of(_samples(entries // 2 - 1))  # the blank caption has an entry, too
    Store(folder.as_uri()).put(_DATASET, dataset.model_dump_json().encode())
    index = PackIndex(connect(url), _HOUR, _HOUR)
    digests = _plan(dataset).digests
    for start in range(0, len(digests), _PACK):
        index.add(f"{PACKS}/{start:032x}.safetensors", 1, digests[start : start + _PACK])
    return {}


def _write_index(folder: Path, url: str, _: int) -> dict[str, dict[str, float]]:
    costs: dict[str, dict[str, float]] = {}
    store, index = Store(folder.as_uri()), PackIndex(connect(url), _HOUR, _HOUR)
    before_mib = _peak_mib()
    with _timed(costs, "read the dataset"):
        dataset = Dataset.model_validate_json(store.get(_DATASET))
    with _timed(costs, "plan"):
        plan = _plan(dataset)
    with _timed(costs, "locate"):
        packs = index.locate(plan.digests)
    with _timed(costs, "write"):
        store.put(_INDEX, to_json(plan.index(packs)))
    costs["write"]["mib"] = _peak_mib() - before_mib
    return _per_entry(costs, len(packs))


def _read_index(folder: Path, _: str, entries: int) -> dict[str, dict[str, float]]:
    from worker.trainer.data.cache_entries import read_index

    costs: dict[str, dict[str, float]] = {}
    store, before_mib = Store(folder.as_uri()), _peak_mib()
    digest = json.loads(store.get(_INDEX)[:100].split(b",")[0] + b"}")["dataset"]
    with _timed(costs, "read"):
        read_index(store, _INDEX, _config(), digest)
    costs["read"]["mib"] = _peak_mib() - before_mib
    return _per_entry(costs, entries)


_STEPS = {"write-dataset": _write_dataset, "write-index": _write_index, "read-index": _read_index}


def _plan(dataset: Dataset) -> CachePlan:
    return CachePlan(_config(), dataset, EncoderDigests(text="t" * 64, vae="v" * 64))


@contextmanager
def _timed(costs: dict[str, dict[str, float]], part: str) -> Iterator[None]:
    began = time.process_time()
    yield
    costs[part] = {"us": (time.process_time() - began) * 1e6, "mib": 0}


def _per_entry(costs: dict[str, dict[str, float]], entries: int) -> dict[str, dict[str, float]]:
    return {part: {**cost, "us": cost["us"] / entries} for part, cost in costs.items()}


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
