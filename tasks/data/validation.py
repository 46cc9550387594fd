"""Checking a dataset: every image decoded, every fault found before it costs a GPU."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from tasks.buckets import Size, nearest_bucket
from tasks.data.images import (
    MAX_PIXELS,
    SUFFIXES,
    ImageFacts,
    UnreadableImageError,
    image_digest,
    image_facts,
    open_image,
    open_mask,
    pixel_count,
)
from tasks.data.memory_budget import MemoryBudget, in_threads
from tasks.data.near_duplicates import likeness_hash, near_pairs
from tasks.data.sources import Item, Listing, Sources
from tasks.data.tokens import TokenLimit, token_limits
from tasks.dataset import Sample
from tasks.errors import BaseModelFilesError, Problem
from tasks.jobs.pipeline import PipelineConfig

# No image that people train on is larger; reading one holds a worker's memory.
MAX_FILE_BYTES = 512 * 2**20
# A crop that throws away more than half of an image loses what its caption speaks of.
_MAX_CROPPED = 0.5
# Beyond it no model was trained on images that were not cut.
_MAX_ASPECT = 3.0
_SUFFIXES_OF = {
    "JPEG": (".jpg", ".jpeg"),
    "PNG": (".png",),
    "WEBP": (".webp",),
    "BMP": (".bmp",),
}


@dataclass(frozen=True, slots=True)
class CheckedFile:
    """A file of a dataset as it was when it was checked.

    Attributes:
        path: The file.
        name: What its image is called in messages.
        image: The digest of the image or mask in it.
        sha256: That of its bytes.
    """

    path: Path
    name: str
    image: str
    sha256: bytes


@dataclass
class Report:
    """What was found in a dataset.

    Attributes:
        samples: The good images with their captions, by their place in the source.
        files: Those images' files, and their masks'.
        faults: What stops the job.
        warnings: What does not.
        buckets: How many images go to each training size.
    """

    samples: list[Sample] = field(default_factory=list)
    files: list[CheckedFile] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    warnings: list[Problem] = field(default_factory=list)
    buckets: Counter[Size] = field(default_factory=Counter)

    def document(self) -> dict[str, Any]:
        """The report for programs."""
        found = [("error", it) for it in self.problems] + [("warning", it) for it in self.warnings]
        return {
            "images": len(self.samples),
            "findings": [
                {
                    "severity": severity,
                    "file": it.location,
                    "message": it.message,
                    "remedy": it.remedy,
                }
                for severity, it in found
            ],
            "buckets": {str(size): count for size, count in sorted(self.buckets.items())},
        }


@dataclass(frozen=True)
class _Checked:
    sample: Sample
    files: list[CheckedFile]
    warnings: list[Problem]
    likeness: int | None


def check_dataset(
    config: PipelineConfig,
    sources: Sources,
    *,
    limits: Callable[[PipelineConfig], list[TokenLimit]] = token_limits,
    between: Callable[[], object] = lambda: None,
) -> Report:
    """Check every image, caption and mask of a job's datasets.

    Args:
        config: The job's training.
        sources: Reads its datasets.
        limits: Gives the text encoders' limits.
        between: Called before each image; what it raises ends the check.
    """
    listing = _listed(config, sources)
    report = Report(problems=listing.problems, warnings=listing.warnings)
    sizes = config.loader.sizes()
    likenesses = []
    for found in in_threads(partial(_check, memory=_Memory()), listing.items):
        between()
        if isinstance(found, Problem):
            report.problems.append(found)
            continue
        bucket = nearest_bucket(found.sample.size, sizes)
        report.samples.append(found.sample)
        report.files += found.files
        likenesses.append(found.likeness)
        report.buckets[bucket] += 1
        report.warnings += [*found.warnings, *_size_warnings(found.sample, bucket)]
    report.warnings += _duplicates(report.samples, likenesses)
    report.warnings += _batch_warnings(config.train_batch_size, report, listing.location)
    if config.use_masks and report.samples and not any(s.mask for s in report.samples):
        report.warnings.append(
            Problem(listing.location, "no row has a mask; use_masks does nothing")
        )
    report.warnings += _placeholder_in_captions(config, report.samples)
    report.warnings += _token_warnings(config, limits, report.samples, listing.location)
    return report


def _listed(config: PipelineConfig, sources: Sources) -> Listing:
    """What all sources hold, each item with its source's number."""
    loader, parts = config.loader, config.loader.sources()
    captions = getattr(loader, "keep_original_captions", True)
    whole = Listing(location="")
    for part, source in enumerate(parts):
        found = sources.listing(source, captions=captions, masks=config.use_masks)
        # With two folders, a file's name alone would not say whose it is.
        start = f"{Path(found.location).name}/" if len(parts) > 1 else ""
        whole.location = whole.location or found.location
        whole.items += [replace(it, name=start + it.name, part=part) for it in found.items]
        whole.problems += found.problems
        whole.warnings += found.warnings
    return whole


class _Memory:
    """What checking takes, so that a few huge images do not take a worker's whole memory."""

    def __init__(self) -> None:
        # Two: whoever holds a file's bytes waits for pixels, and never the other way round.
        self.files = MemoryBudget(MAX_FILE_BYTES)
        self.pixels = MemoryBudget(4 * MAX_PIXELS)


def _check(item: Item, memory: _Memory) -> Problem | _Checked:
    try:
        with memory.files.taken(_size(item.path)):
            data = item.path.read_bytes()
            with memory.pixels.taken(4 * pixel_count(data)):
                return _checked(item, data)
    except OSError as error:
        return Problem(item.name, f"cannot be read: {error}")
    except (UnreadableImageError, _UnusableFileError) as error:
        return Problem(item.name, str(error), "replace it or leave it out")


def _checked(item: Item, data: bytes) -> _Checked:
    image = open_image(data)
    digest = image_digest(image)
    files = [CheckedFile(item.path, item.name, digest, hashlib.sha256(data).digest())]
    if item.mask is not None:
        files.append(_checked_mask(item.mask, item.name, image.size))
    sample = Sample(
        image=digest,
        width=image.width,
        height=image.height,
        caption=item.caption,
        source=item.name,
        mask=None if item.mask is None else files[-1].image,
        part=item.part,
    )
    warnings = list(_kind_warnings(item, image_facts(data)))
    return _Checked(sample, files, warnings, likeness_hash(image))


class _UnusableFileError(ValueError):
    """An image's or mask's file cannot be used."""


def _size(path: Path) -> int:
    size = path.stat().st_size
    if size > MAX_FILE_BYTES:
        raise _UnusableFileError(f"is larger than {MAX_FILE_BYTES // 2**20} MiB")
    return size


def _checked_mask(path: Path, name: str, size: tuple[int, int]) -> CheckedFile:
    try:
        _size(path)
        data = path.read_bytes()
        mask = open_mask(data)
    except (OSError, UnreadableImageError, _UnusableFileError) as error:
        raise _UnusableFileError(f"has a mask, {path.name}, that {error}") from error
    if mask.size != size:
        told = f"{mask.width}x{mask.height}, and it is {size[0]}x{size[1]}"
        raise _UnusableFileError(f"has a mask, {path.name}, of another size: {told}")
    if mask.getextrema() == (0, 0):
        raise _UnusableFileError(f"has a mask, {path.name}, that is all black: it counts nowhere")
    return CheckedFile(path, name, image_digest(mask), hashlib.sha256(data).digest())


def _kind_warnings(item: Item, facts: ImageFacts) -> Iterable[Problem]:
    """What is lost as an image becomes upright RGB of 8 bits."""
    suffix = PurePosixPath(item.path).suffix.lower()
    # Downloads have no suffix.
    if suffix in SUFFIXES and suffix not in _SUFFIXES_OF[facts.format]:
        yield Problem(item.name, f"is a {facts.format} image; it is read as one", "rename it")
    if facts.is_transparent:
        yield Problem(item.name, "is partly transparent; it is put on white")
    if facts.frames > 1:
        yield Problem(item.name, f"is animated; of its {facts.frames} images the first is used")
    if facts.mode == "CMYK":
        problem = "is CMYK; without its profile, colors may come out otherwise"
        yield Problem(item.name, problem, "save it as RGB")
    if facts.mode.startswith("I"):
        yield Problem(item.name, "has 16 bits a pixel, of which 8 are used")
    if facts.mode == "P":
        yield Problem(item.name, "has no more than 256 colors", "use the original, if there is one")


def _size_warnings(sample: Sample, bucket: Size) -> Iterable[Problem]:
    scale = max(bucket.width / sample.width, bucket.height / sample.height)
    if scale > 1:
        yield Problem(sample.source, f"is {sample.size}, smaller than {bucket}; it is enlarged")
    kept = bucket.pixels / (sample.size.pixels * scale**2)
    aspect = max(sample.width / sample.height, sample.height / sample.width)
    if kept < 1 - _MAX_CROPPED:
        problem = f"keeps {kept:.0%} of its {sample.size} when cut to {bucket}"
        yield Problem(sample.source, problem, "cut it yourself, or use aspect_ratio_buckets")
    elif aspect > _MAX_ASPECT:
        problem = f"is {sample.size}, more than {_MAX_ASPECT:.0f} times as long as wide"
        yield Problem(sample.source, problem, "cut it to what its caption speaks of")


def _duplicates(samples: list[Sample], likenesses: list[int | None]) -> Iterable[Problem]:
    same: dict[str, list[str]] = defaultdict(list)
    for sample in samples:
        same[sample.image].append(sample.source)
    for first, *others in same.values():
        if others:
            yield Problem(first, f"is the same image as {', '.join(others)}")
    for first_number, number in near_pairs(likenesses):
        one, other = samples[first_number], samples[number]
        if one.image != other.image:
            problem = f"looks the same as {other.source}, {other.size} and {one.size}"
            yield Problem(one.source, problem, "keep the better one")


def _batch_warnings(batch: int, report: Report, where: str) -> Iterable[Problem]:
    if not report.samples:
        return
    if len(report.samples) < batch:
        few = f"{len(report.samples)} images are less than train_batch_size ({batch})"
        yield Problem(where, few)
    elif len(report.buckets) > 1:
        small = sum(count < batch for count in report.buckets.values())
        if small:
            problem = (
                f"{small} of {len(report.buckets)} sizes have fewer images than "
                f"train_batch_size ({batch}); their batches are smaller"
            )
            yield Problem(where, problem)


def _placeholder_in_captions(config: PipelineConfig, samples: list[Sample]) -> Iterable[Problem]:
    """A token that templates put in is there twice where captions hold it too."""
    token = getattr(config, "placeholder_token", None)
    for sample in samples:
        if token is not None and token in sample.caption:
            problem = f"has the placeholder token {token!r} in its caption; the template adds it"
            yield Problem(sample.source, problem)


def _token_warnings(
    config: PipelineConfig,
    limits: Callable[[PipelineConfig], list[TokenLimit]],
    samples: list[Sample],
    where: str,
) -> Iterable[Problem]:
    """Captions of which the text encoders see a part only."""
    # Templates with a placeholder are drawn at each step, and are short.
    if not samples or getattr(config, "placeholder_token", None) is not None:
        return
    try:
        found = limits(config)
    except BaseModelFilesError as error:
        yield Problem(where, f"captions were not counted in tokens: {error.message}")
        return
    captions = [config.loader.caption(sample, ()) for sample in samples]
    for limit in found:
        counts = {caption: limit.count(caption) for caption in set(captions)}
        over = [(it, counts[c]) for it, c in zip(samples, captions, strict=True)]
        over = [(sample, count) for sample, count in over if count > limit.most]
        if limit.is_all:
            for sample, count in over:
                problem = f"has a caption of {count} tokens; {limit.encoder} reads {limit.most}"
                yield Problem(sample.source, problem, "put what matters first, or shorten it")
        elif over:
            problem = (
                f"{len(over)} captions have more tokens than the {limit.most} that "
                f"{limit.encoder} reads; it sees their start, the other encoder all of them"
            )
            yield Problem(where, problem)
