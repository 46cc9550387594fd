"""Checking a data set: every picture decoded, every fault found before it costs a GPU."""

import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

from tasks.data.buckets import Size, nearest_bucket
from tasks.data.dataset import Sample
from tasks.data.pictures import (
    UnreadablePictureError,
    has_transparency,
    mask_digest,
    open_mask,
    open_picture,
    picture_digest,
)
from tasks.data.sources import Item, Listing, list_source
from tasks.errors import Fault
from tasks.jobs.pipeline import PipelineConfig

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
    """Check every picture, caption and mask of a job's data sets."""
    listing = _listed(config)
    report = Report(faults=listing.faults, warnings=listing.warnings)
    sizes = config.loader.sizes()
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
    if config.use_masks and report.samples and not any(s.mask for s in report.samples):
        report.warnings.append(Fault(listing.where, "no row has a mask; use_masks does nothing"))
    report.warnings += _placeholder_in_captions(config, report.samples)
    return report


def _listed(config: PipelineConfig) -> Listing:
    """What all sources hold, each item with its source's number."""
    loader, sources = config.loader, config.loader.sources()
    captions = getattr(loader, "keep_original_captions", True)
    whole = Listing(where="")
    for part, source in enumerate(sources):
        found = list_source(source, captions=captions, masks=config.use_masks)
        # With two folders, a file's name alone would not say whose it is.
        start = f"{Path(found.where).name}/" if len(sources) > 1 else ""
        whole.where = whole.where or found.where
        whole.items += [replace(it, name=start + it.name, part=part) for it in found.items]
        whole.faults += found.faults
        whole.warnings += found.warnings
    return whole


def _placeholder_in_captions(config: PipelineConfig, samples: list[Sample]) -> Iterable[Fault]:
    """A token that templates put in is there twice where captions hold it too."""
    token = getattr(config, "placeholder_token", None)
    for sample in samples:
        if token is not None and token in sample.caption:
            problem = f"has the placeholder token {token!r} in its caption; the template adds it"
            yield Fault(sample.source, problem)


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
        data = _read(item.path)
        picture = open_picture(data)
        mask = None if item.mask is None else _checked_mask(item.mask, picture.size)
    except (UnreadablePictureError, _UnusableFileError) as error:
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
        mask=mask,
        part=item.part,
    )
    return sample, warnings


class _UnusableFileError(ValueError):
    """A picture's or mask's file cannot be used."""


def _read(path: Path) -> bytes:
    try:
        if path.stat().st_size > _MOST_FILE_BYTES:
            raise _UnusableFileError(f"is larger than {_MOST_FILE_BYTES // 2**20} MiB")
        return path.read_bytes()
    except OSError as error:
        raise _UnusableFileError(f"cannot be read: {error}") from error


def _checked_mask(path: Path, size: tuple[int, int]) -> str:
    """A mask's digest."""
    try:
        mask = open_mask(_read(path))
    except (UnreadablePictureError, _UnusableFileError) as error:
        raise _UnusableFileError(f"has a mask, {path.name}, that {error}") from error
    if mask.size != size:
        told = f"{mask.width}x{mask.height}, and it is {size[0]}x{size[1]}"
        raise _UnusableFileError(f"has a mask, {path.name}, of another size: {told}")
    if mask.getextrema() == (0, 0):
        raise _UnusableFileError(f"has a mask, {path.name}, that is all black: it counts nowhere")
    return mask_digest(mask)


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
