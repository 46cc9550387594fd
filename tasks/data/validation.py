"""Dataset validation: decode every image and report every problem before a job uses a GPU."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from tasks.buckets import Size, nearest_bucket
from tasks.data.decoding.decoder_pool import (
    DecodeError,
    DecoderLimits,
    UnreadFormatError,
    decode_all,
)
from tasks.data.decoding.image_check import CheckedImage, CheckedMask
from tasks.data.decoding.images import ImageFacts
from tasks.data.formats import format_of_name
from tasks.data.known_images import KnownImages
from tasks.data.listing import MAX_PROBLEMS, Item, Listing, grouped, no_image
from tasks.data.near_duplicates import DifferenceHash, near_pairs
from tasks.data.sources import Sources
from tasks.data.tokens import TokenLimit, token_limits
from tasks.dataset import Sample, balanced
from tasks.errors import BaseModelFilesError, Problem
from tasks.jobs.pipeline import PipelineConfig
from tasks.jobs.run_warnings import count_warnings
from tasks.store import Store

# A crop that removes more than half of an image removes what its caption describes.
_MAX_CROPPED = 0.5
# No base model was trained on wider uncropped images.
_LONG_ASPECT = 3.0
_MAX_ASPECT = 20
# Of a mask: with less, a single step may train nothing; or the values are from 0 to 1.
_MIN_COVERAGE = 0.01
_MIN_BRIGHTNESS = 128
_CHECKED_IMAGE = TypeAdapter(CheckedImage)


@dataclass(frozen=True, slots=True)
class CheckedFile:
    """A dataset's file at the time of its check.

    Attributes:
        path: The file.
        name: The image's name in messages.
        image: The digest of the image or mask in the file; see ``image_digest``.
        sha256: The digest of the file's bytes, in hex.
    """

    path: Path
    name: str
    image: str
    sha256: str


@dataclass
class Report:
    """The result of a dataset's validation.

    Attributes:
        samples: The valid images with their captions, in the source's order.
        files: The files of these images and their masks.
        problems: What ends the job.
        warnings: What does not.
        buckets: The number of images of each training size.
        by_file: Severity and finding of the worst one about each file, also where many are reported
            as one.
    """

    samples: list[Sample] = field(default_factory=list)
    files: list[CheckedFile] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    warnings: list[Problem] = field(default_factory=list)
    buckets: Counter[Size] = field(default_factory=Counter)
    by_file: dict[str, tuple[str, Problem]] = field(default_factory=dict)

    def document(self) -> dict[str, Any]:
        """Return the report as JSON."""
        findings = [("error", problem) for problem in self.problems]
        findings += [("warning", warning) for warning in self.warnings]
        return {
            "images": len(self.samples),
            "findings": [
                {
                    "severity": severity,
                    "file": it.location,
                    "message": it.message,
                    "remedy": it.remedy,
                }
                for severity, it in findings
            ],
            "buckets": {str(size): count for size, count in sorted(self.buckets.items())},
        }


@dataclass(frozen=True)
class _Checked:
    sample: Sample
    files: list[CheckedFile]
    warnings: list[Problem]
    hash: DifferenceHash | None
    mask: CheckedMask | None


def check_dataset(
    config: PipelineConfig,
    sources: Sources,
    *,
    limits: Callable[[PipelineConfig], list[TokenLimit]] = token_limits,
    check_stop: Callable[[], object] = lambda: None,
    decoders: DecoderLimits | None = None,
    store: Store | None = None,
) -> Report:
    """Check every image, caption and mask of a job's datasets.

    Args:
        config: The job's training config.
        sources: Reads the job's datasets.
        limits: Returns the text encoders' limits.
        check_stop: Called a few times a second. An exception that it raises ends the check.
        decoders: The limits of the processes that decode the images.
        store: Keeps the results, so that images that have not changed are not decoded again.
    """
    listing, locations = _list_all(config, sources)
    known = KnownImages(store, locations)
    report = Report(problems=listing.problems[:MAX_PROBLEMS], warnings=listing.warnings)
    sizes = config.loader.sizes()
    hashes, masks = [], []
    requests = (_request(item, config) for item in listing.items)
    decoded = decode_all(requests, check_stop=check_stop, limits=decoders, find=known.find)
    for item, answer in zip(listing.items, decoded, strict=True):
        if len(report.problems) == MAX_PROBLEMS:
            break
        if isinstance(answer, UnreadFormatError):
            report.warnings.append(Problem(item.name, str(answer), answer.remedy))
            continue
        result = _check(item, answer)
        if isinstance(result, Problem):
            report.problems.append(result)
            continue
        known.add(answer)
        bucket = nearest_bucket(result.sample.size, sizes)
        report.samples.append(result.sample)
        report.files += result.files
        hashes.append(result.hash)
        masks.append(result.mask)
        report.buckets[bucket] += 1
        report.warnings += [*result.warnings, *_size_warnings(result.sample, bucket)]
    known.save()
    if len(report.problems) == MAX_PROBLEMS:
        message = f"has {MAX_PROBLEMS:,} problems or more; the rest is not checked"
        report.problems.append(Problem(listing.location, message))
    report.warnings += _duplicate_warnings(report.samples, hashes)
    report.warnings += _batch_warnings(config, report, listing.location)
    if config.use_masks and (any(masks) or not report.problems):
        report.warnings += _mask_warnings(report.samples, masks, listing.location)
    report.warnings += _placeholder_warnings(config, report.samples)
    report.warnings += _token_warnings(config, limits, report.samples, listing.location)
    if not report.problems:
        report.problems += map(no_image, _empty_parts(locations, report.samples))
    for severity, findings in (("error", report.problems), ("warning", report.warnings)):
        for finding in findings:
            report.by_file.setdefault(finding.location, (severity, finding))
    report.problems, report.warnings = grouped(report.problems), _first(grouped(report.warnings))
    return report


def _empty_parts(locations: list[str], samples: list[Sample]) -> list[str]:
    """Return the sources all of whose images were left out."""
    used = {sample.part for sample in samples}
    return [location for part, location in enumerate(locations) if part not in used]


def _first(warnings: list[Problem]) -> list[Problem]:
    rest = len(warnings) - MAX_PROBLEMS
    more = [Problem("", f"there are {rest:,} more warnings")] if rest > 0 else []
    return warnings[:MAX_PROBLEMS] + more


def _list_all(config: PipelineConfig, sources: Sources) -> tuple[Listing, list[str]]:
    """Return the listings of all sources as one, each item with its source's index.

    Returns:
        The listing, and the location of each source.
    """
    parts = config.loader.sources()
    whole, locations = Listing(location=""), []
    for part, source in enumerate(parts):
        listing = sources.listing(
            source, captions=config.loader.reads_captions, masks=config.use_masks
        )
        # With two folders, a file's name alone is ambiguous.
        prefix = f"{Path(listing.location).name}/" if len(parts) > 1 else ""
        locations.append(listing.location)
        whole.items += [replace(item, name=prefix + item.name, part=part) for item in listing.items]
        whole.problems += listing.problems
        whole.warnings += listing.warnings
    whole.location = locations[0]
    return whole, locations


def _request(item: Item, config: PipelineConfig) -> dict[str, Any]:
    """Return the request to decode an image and its mask."""
    mask = None
    if item.mask is not None:
        loader = config.loader
        mask = {"path": str(item.mask), "sizes": loader.sizes(), "center_crop": loader.center_crop}
    return {"kind": "image", "path": str(item.path), "mask": mask}


def _check(item: Item, result: object) -> Problem | _Checked:
    """Return what a decoder's result means for an image."""
    if isinstance(result, DecodeError):
        return Problem(item.name, str(result), "replace it or leave it out")
    image = _CHECKED_IMAGE.validate_python(result)
    if max(image.width, image.height) > _MAX_ASPECT * min(image.width, image.height):
        message = f"is {image.width}x{image.height}: one side is over {_MAX_ASPECT} times the other"
        return Problem(item.name, message, "crop it to what its caption describes")
    warnings = [*_format_warnings(item, image.facts), *_mask_file_warnings(item, image.mask)]
    files = [CheckedFile(item.path, item.name, image.digest, image.sha256)]
    if image.mask is not None and item.mask is not None:
        files.append(CheckedFile(item.mask, item.name, image.mask.digest, image.mask.sha256))
    sample = Sample(
        image=image.digest,
        width=image.width,
        height=image.height,
        caption=item.caption,
        source=item.name,
        mask=None if image.mask is None else image.mask.digest,
        part=item.part,
    )
    return _Checked(sample, files, warnings, image.hash, image.mask)


def _format_warnings(item: Item, facts: ImageFacts) -> Iterable[Problem]:
    """Yield what is lost when a file becomes upright RGB of 8 bits."""
    # By the dataset's own name, which rows have in parentheses: copies of files are renamed.
    named = format_of_name(item.name.removesuffix(")"))
    if named is not None and named.name != facts.format:
        yield Problem(item.name, f"is a {facts.format} image; it is read as one", "rename it")
    if facts.alpha[1] == 0:
        message = "is entirely transparent; only a white background is left"
        yield Problem(item.name, message, "save it without transparency")
    elif facts.alpha[0] < 255:
        yield Problem(item.name, "is partly transparent; a white background is added")
    if facts.frames > 1:
        yield Problem(item.name, f"is animated; only the first of {facts.frames} frames is used")
    if facts.color_problem:
        message = f"{facts.color_problem}; its colors may change"
        yield Problem(item.name, message, "save it in sRGB")
    if facts.bits > 8:
        yield Problem(item.name, f"has {facts.bits} bits a channel; they are scaled to 8")
    if facts.mode == "P":
        yield Problem(item.name, "has at most 256 colors", "use the original, if you have it")


def _mask_file_warnings(item: Item, mask: CheckedMask | None) -> Iterable[Problem]:
    """Yield what is unusual about an image's mask."""
    if mask is None:
        return
    if mask.facts.is_colored:
        message = "has a mask in color; its luminance is used"
        yield Problem(item.name, message, "save it in gray, white where the image counts")
    elif mask.facts.brightest < _MIN_BRIGHTNESS:
        message = f"has a mask whose brightest value is {mask.facts.brightest} of 255"
        yield Problem(item.name, message, "write 255 where the image counts fully")
    elif mask.coverage < _MIN_COVERAGE:
        message = f"has a mask that covers less than {_MIN_COVERAGE:.0%} of what is trained"
        yield Problem(item.name, message, "check that white is where the image counts")


def _mask_warnings(
    samples: list[Sample], masks: list[CheckedMask | None], location: str
) -> Iterable[Problem]:
    """Yield the images without a mask, and what the masks cover."""
    coverages = [mask.coverage for mask in masks if mask is not None]
    if not coverages:
        if samples:
            yield Problem(location, "no row has a mask; use_masks has no effect")
        return
    lacking = [it.source for it, mask in zip(samples, masks, strict=True) if mask is None]
    if lacking:
        has = "has" if len(lacking) == 1 else "have"
        message = f"{len(lacking)} of {len(samples)} rows {has} no mask, the first is {lacking[0]}"
        remedy = "check the column's name, or give all a mask"
        yield Problem(location, f"{message}; without one, all of an image is trained", remedy)
    mean, least, most = sum(coverages) / len(coverages), min(coverages), max(coverages)
    message = f"masks cover {mean:.1%} of what is trained"
    if least != most:
        message += f", {least:.1%} to {most:.1%} of an image"
    alphas = sum(mask.facts.is_alpha for mask in masks if mask is not None)
    if alphas:
        message += f"; {alphas} of {len(coverages)} are alpha channels"
    yield Problem(location, message)


def _size_warnings(sample: Sample, bucket: Size) -> Iterable[Problem]:
    scale = max(bucket.width / sample.width, bucket.height / sample.height)
    if scale > 1:
        yield Problem(sample.source, f"is {sample.size}, smaller than {bucket}; it is upscaled")
    kept = bucket.pixels / (sample.size.pixels * scale**2)
    aspect = max(sample.width / sample.height, sample.height / sample.width)
    if kept < 1 - _MAX_CROPPED:
        message = f"keeps only {kept:.0%} of its {sample.size} when cropped to {bucket}"
        yield Problem(sample.source, message, "crop it yourself, or use aspect_ratio_buckets")
    elif aspect > _LONG_ASPECT:
        message = f"is {sample.size}: one side is over {_LONG_ASPECT:.0f} times the other"
        yield Problem(sample.source, message, "crop it to what its caption describes")


def _duplicate_warnings(
    samples: list[Sample], hashes: list[DifferenceHash | None]
) -> Iterable[Problem]:
    same: dict[str, list[str]] = defaultdict(list)
    for sample in samples:
        same[sample.image].append(sample.source)
    for first, *others in same.values():
        if others:
            yield Problem(first, f"is the same image as {', '.join(others)}")
    for first_number, number in near_pairs(hashes):
        one, other = samples[first_number], samples[number]
        if one.image != other.image:
            message = f"looks the same as {other.source} ({one.size} and {other.size})"
            yield Problem(one.source, message, "keep the better one")


def _batch_warnings(config: PipelineConfig, report: Report, location: str) -> Iterable[Problem]:
    """Yield what depends on the number of images: batches, and lengths given in epochs."""
    if not report.samples:
        return
    sizes = config.loader.sizes()
    trained = Counter(nearest_bucket(sample.size, sizes) for sample in balanced(report.samples))
    if not report.problems:
        for warning in count_warnings(config, trained.values()):
            yield Problem("training", warning)
    batch_size = config.train_batch_size
    if len(report.samples) < batch_size:
        count = len(report.samples)
        images = "1 image" if count == 1 else f"{count} images"
        yield Problem(location, f"has {images}, fewer than train_batch_size ({batch_size})")
    elif len(trained) > 1:
        small = sum(count < batch_size for count in trained.values())
        if small:
            message = (
                f"{small} of {len(trained)} sizes have fewer images than "
                f"train_batch_size ({batch_size}); their batches are smaller"
            )
            yield Problem(location, message)


def _placeholder_warnings(config: PipelineConfig, samples: list[Sample]) -> Iterable[Problem]:
    """Yield the samples whose captions have the token that the templates add."""
    token = getattr(config, "placeholder_token", None)
    for sample in samples:
        if token is not None and token in sample.caption:
            message = f"has the placeholder token {token!r} in its caption; the template adds it"
            yield Problem(sample.source, message)


def _token_warnings(
    config: PipelineConfig,
    limits: Callable[[PipelineConfig], list[TokenLimit]],
    samples: list[Sample],
    location: str,
) -> Iterable[Problem]:
    """Yield the captions that are too long for a text encoder."""
    # Templates with a placeholder are drawn at each step, and are short.
    if not samples or getattr(config, "placeholder_token", None) is not None:
        return
    try:
        encoders = limits(config)
    except BaseModelFilesError as error:
        yield Problem(location, f"the tokens of captions were not counted: {error.message}")
        return
    captions = [config.caption(sample, ()) for sample in samples]
    for limit in encoders:
        counts = {caption: limit.count(caption) for caption in set(captions)}
        counted = [(it, counts[caption]) for it, caption in zip(samples, captions, strict=True)]
        too_long = [(sample, count) for sample, count in counted if count > limit.max_tokens]
        if limit.is_last:
            for sample, count in too_long:
                message = (
                    f"has a caption of {count} tokens; {limit.encoder} reads {limit.max_tokens}"
                )
                yield Problem(sample.source, message, "put what matters first, or shorten it")
        elif too_long:
            message = (
                f"{len(too_long)} captions have more than the {limit.max_tokens} tokens that "
                f"{limit.encoder} reads; the other encoder reads more of them"
            )
            yield Problem(location, message)
