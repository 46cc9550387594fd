"""The normalised data set: what ``prepare`` writes and everything after it reads."""

import hashlib
from collections.abc import Iterable

from tasks.buckets import Size
from tasks.jobs.base import StrictModel


class Sample(StrictModel):
    """One image with its caption."""

    image: str
    """SHA-256 of the picture: its size and its decoded RGB pixels, upright."""
    width: int
    height: int
    caption: str
    source: str
    """The file it came from, for messages."""

    @property
    def size(self) -> Size:
        """The picture's size in pixels."""
        return Size(self.width, self.height)


class DataSet(StrictModel):
    """Samples in an order of their own, the same wherever they came from."""

    digest: str
    """SHA-256 of the pictures and captions, whatever the files were called."""
    samples: tuple[Sample, ...]


def data_set_of(samples: Iterable[Sample]) -> DataSet:
    """The data set of these samples, in any order."""
    ordered = tuple(sorted(samples, key=lambda sample: (sample.image, sample.caption)))
    digest = hashlib.sha256(b"training-worker data set 1")
    for sample in ordered:
        caption = sample.caption.encode()
        digest.update(f"\n{sample.image} {len(caption)} ".encode() + caption)
    return DataSet(digest=digest.hexdigest(), samples=ordered)
