"""The normalized dataset, which ``prepare`` writes and the later stages read."""

import hashlib
from collections.abc import Iterable

from tasks.buckets import Size, nearest_bucket
from tasks.strict_model import StrictModel

# More images make a dataset document of over a gigabyte.
MAX_ITEMS = 1_000_000
# About 20 times what T5 reads.
MAX_CAPTION_BYTES = 64 * 1024


class Sample(StrictModel):
    """One image with its caption."""

    image: str
    """SHA-256 of the image: its size and its decoded RGB pixels, upright."""
    width: int
    height: int
    caption: str
    source: str
    """The file's name in messages."""
    mask: str | None = None
    """SHA-256 of the mask, an image of the same size; null if the whole image counts."""
    part: int = 0
    """The index of the data loader's dataset."""

    @property
    def size(self) -> Size:
        """The image's size in pixels."""
        return Size(self.width, self.height)


class Dataset(StrictModel):
    """Samples in an order that does not depend on their source."""

    digest: str
    """SHA-256 of the images and captions, independent of file names."""
    samples: tuple[Sample, ...]

    def sizes_in(self, buckets: tuple[Size, ...]) -> tuple[Size, ...]:
        """Return the training size of each sample: the nearest bucket."""
        return tuple(nearest_bucket(sample.size, buckets) for sample in self.samples)


def dataset_of(samples: Iterable[Sample]) -> Dataset:
    """Return the dataset of these samples, given in any order."""
    ordered = tuple(sorted(samples, key=_sort_key))
    digest = hashlib.sha256(b"training-worker dataset 1")
    for sample in ordered:
        caption = sample.caption.encode()
        digest.update(f"\n{sample.image} {len(caption)} ".encode() + caption)
        if sample.mask or sample.part:
            digest.update(f"\n mask {sample.mask} part {sample.part}".encode())
    return Dataset(digest=digest.hexdigest(), samples=ordered)


def balanced(samples: Iterable[Sample]) -> list[Sample]:
    """Return the same number of samples of each part, those of smaller parts repeated in order."""
    parts: dict[int, list[Sample]] = {}
    for sample in sorted(samples, key=_sort_key):
        parts.setdefault(sample.part, []).append(sample)
    count = max(map(len, parts.values()), default=0)
    return [part[number % len(part)] for part in parts.values() for number in range(count)]


def _sort_key(sample: Sample) -> tuple[str, str, str, int]:
    return sample.image, sample.caption, sample.mask or "", sample.part
