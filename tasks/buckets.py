"""Aspect-ratio buckets: the sizes that images are cropped to, and the choice of an image's size.

The rule is invoke-training's: step one side from ``start_dim`` to ``end_dim`` by ``divisible_by``,
and choose the other so that the area is the target's or just below it.
"""

from functools import lru_cache
from typing import NamedTuple


class Size(NamedTuple):
    """Width and height in pixels."""

    width: int
    height: int

    @property
    def pixels(self) -> int:
        """The area in pixels."""
        return self.width * self.height

    def __str__(self) -> str:
        """Return the size as in ``768x512``."""
        return f"{self.width}x{self.height}"


@lru_cache(maxsize=64)
def bucket_sizes(
    target_resolution: int, start_dim: int, end_dim: int, divisible_by: int
) -> tuple[Size, ...]:
    """Return every bucket, narrowest first; sides are multiples of ``divisible_by`` pixels."""
    area = target_resolution**2
    sizes = set()
    for side in range(start_dim, end_dim + 1, divisible_by):
        other = area // side // divisible_by * divisible_by
        if other:
            sizes |= {Size(side, other), Size(other, side)}
    return tuple(sorted(sizes, key=lambda size: (size.width / size.height, size.width)))


def nearest_bucket(size: Size, buckets: tuple[Size, ...]) -> Size:
    """Return the bucket whose aspect ratio is nearest to that of ``size``, by their quotient."""
    aspect = size.width / size.height

    def distance(bucket: Size) -> float:
        ratio = bucket.width / bucket.height
        return max(ratio / aspect, aspect / ratio)

    return min(buckets, key=distance)
