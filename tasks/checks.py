"""Checking a data set: every picture decoded, every fault found before it costs a GPU."""

import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from tasks.buckets import Size, nearest_bucket
from tasks.dataset import Sample
from tasks.errors import Fault
from tasks.jobs.pipeline import PipelineConfig
from tasks.pictures import UnreadablePictureError, has_transparency, open_picture, picture_digest
from tasks.sources import Item, list_source

# No picture that people train on is larger; reading one holds a worker's memory.
_MOST_FILE_BYTES = 512 * 2**20
# A crop that throws away more than half of a picture loses what its caption speaks of.
_MOST_CROPPED = 0.5


@dataclass
class Report:
    """What was found in a data set.

    Attributes:
        items: The good pictures with their captions, by their place in the source.
        samples: The same, as they are stored.
        faults: What stops the job.
        warnings: What does not.
        buckets: How many pictures go to each training size.
    """

    items: list[Item] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    warnings: list[Fault] = field(default_factory=list)
    buckets: Counter[Size] = field(default_factory=Counter)

    def document(self) -> dict[str, Any]:
        """The report for programs."""
        return {
            "pictures": len(self.samples),
            "faults": [{"where": f.where, "problem": f.problem} for f in self.faults],
            "warnings": [{"where": f.where, "problem": f.problem} for f in self.warnings],
            "buckets": {str(size): count for size, count in sorted(self.buckets.items())},
        }


def check_data_set(config: PipelineConfig) -> Report:
    """Check every picture and caption of a job's data set."""
    listing = list_source(config.data_loader.dataset)
    report = Report(faults=listing.faults, warnings=listing.warnings)
    sizes = config.data_loader.sizes()
    for item, found in _in_threads(listing.items):
        if isinstance(found, Fault):
            report.faults.append(found)
            continue
        sample, warnings = found
        bucket = nearest_bucket(sample.size, sizes)
        report.items.append(item)
        report.samples.append(sample)
        report.buckets[bucket] += 1
        report.warnings += [*warnings, *_size_warnings(sample, bucket)]
    report.warnings += _duplicates(report.samples)
    batch = config.train_batch_size
    if 0 < len(report.samples) < batch:
        few = f"{len(report.samples)} pictures are less than train_batch_size ({batch})"
        report.warnings.append(Fault(listing.where, few))
    return report


def _in_threads(
    items: list[Item],
) -> Iterator[tuple[Item, Fault | tuple[Sample, list[Fault]]]]:
    """Check items in their order, a few ahead: decoding releases Python's lock."""
    threads = min(32, os.cpu_count() or 1)
    with ThreadPoolExecutor(threads) as pool:
        rest = iter(items)
        # Submitting all at once would hold a future, and its result, for each of a million.
        waiting = [(item, pool.submit(_check, item)) for item in islice(rest, 2 * threads)]
        while waiting:
            item, future = waiting.pop(0)
            yield item, future.result()
            waiting += [(item, pool.submit(_check, item)) for item in islice(rest, 1)]


def _check(item: Item) -> Fault | tuple[Sample, list[Fault]]:
    try:
        if item.path.stat().st_size > _MOST_FILE_BYTES:
            return Fault(item.name, f"is larger than {_MOST_FILE_BYTES // 2**20} MiB")
        data = item.path.read_bytes()
    except OSError as error:
        return Fault(item.name, f"cannot be read: {error}")
    try:
        picture = open_picture(data)
    except UnreadablePictureError as error:
        return Fault(item.name, str(error))
    warnings = []
    if has_transparency(data):
        warnings.append(Fault(item.name, "is partly transparent; it is put on white"))
    sample = Sample(
        image=picture_digest(picture),
        width=picture.width,
        height=picture.height,
        caption=item.caption,
        source=item.name,
    )
    return sample, warnings


def _size_warnings(sample: Sample, bucket: Size) -> Iterable[Fault]:
    scale = max(bucket.width / sample.width, bucket.height / sample.height)
    if scale > 1:
        yield Fault(sample.source, f"is {sample.size}, smaller than {bucket}; it is enlarged")
    kept = bucket.pixels / (sample.size.pixels * scale**2)
    if kept < 1 - _MOST_CROPPED:
        yield Fault(sample.source, f"keeps {kept:.0%} of its {sample.size} when cut to {bucket}")


def _duplicates(samples: list[Sample]) -> Iterable[Fault]:
    same: dict[str, list[str]] = defaultdict(list)
    for sample in samples:
        same[sample.image].append(sample.source)
    for first, *others in same.values():
        if others:
            yield Fault(first, f"is the same picture as {', '.join(others)}")
