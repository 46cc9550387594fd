"""The normalised dataset: what ``prepare`` writes and everything after it reads."""

import hashlib
from collections.abc import Iterable

from tasks.buckets import Size, nearest_bucket
from tasks.strict_model import StrictModel

# More would not be looked at by anybody, and take a gigabyte as JSON.
MAX_ITEMS = 1_000_000
# A caption of this many bytes is some 20 times what T5 reads; longer ones are no captions.
MAX_CAPTION_BYTES = 64 * 1024


class Sample(StrictModel):
    """One image with its caption."""

    image: str
    """SHA-256 of the image: its size and its decoded RGB pixels, upright."""
    width: int
    height: int
    caption: str
    source: str
    """The file it came from, for messages."""
    mask: str | None = None
    """SHA-256 of its mask, an image of the same size; null where all of it counts."""
    part: int = 0
    """Which of the data loader's datasets it is of."""

    @property
    def size(self) -> Size:
        """The image's size in pixels."""
        return Size(self.width, self.height)


class Dataset(StrictModel):
    """Samples in an order of their own, the same wherever they came from."""

    digest: str
    """SHA-256 of the images and captions, whatever the files were called."""
    samples: tuple[Sample, ...]

    def sizes_in(self, buckets: tuple[Size, ...]) -> tuple[Size, ...]:
        """The training size of each sample, of these."""
        return tuple(nearest_bucket(sample.size, buckets) for sample in self.samples)


def dataset_of(samples: Iterable[Sample]) -> Dataset:
    """The dataset of these samples, in any order."""
    ordered = tuple(sorted(samples, key=_place))
    digest = hashlib.sha256(b"training-worker dataset 1")
    for sample in ordered:
        caption = sample.caption.encode()
        digest.update(f"\n{sample.image} {len(caption)} ".encode() + caption)
        if sample.mask or sample.part:
            digest.update(f"\n mask {sample.mask} part {sample.part}".encode())
    return Dataset(digest=digest.hexdigest(), samples=ordered)


def balanced(samples: Iterable[Sample]) -> list[Sample]:
    """As many samples of each part: those of the smaller ones again and again, in their order."""
    parts: dict[int, list[Sample]] = {}
    for sample in sorted(samples, key=_place):
        parts.setdefault(sample.part, []).append(sample)
    most = max(map(len, parts.values()), default=0)
    return [part[number % len(part)] for part in parts.values() for number in range(most)]


def _place(sample: Sample) -> tuple[str, str, str, int]:
    return sample.image, sample.caption, sample.mask or "", sample.part
