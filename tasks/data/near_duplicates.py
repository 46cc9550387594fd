"""Near-duplicate images: the same image, scaled or compressed again.

They are found by difference hashes: whether each cell of a small gray copy is darker than its
neighbor, across and down, 64 bits each (after N. Krawetz, "Kind of like that", 2013). Their colors
must be the same, too: a red ball is not a near-duplicate of a blue one.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from PIL import Image

_SIDE = 8
# Of 128 bits. Compressing again changes about four; other photographs differ in thirty or more.
_MAX_DISTANCE = 4
# If at most that many bits differ, at least one of this many parts of a hash is equal.
_PARTS = _MAX_DISTANCE + 1
_BITS = 2 * _SIDE * _SIDE
# A part that many images share, such as a plain background's, distinguishes nothing and costs time.
_MAX_SHARING = 200
# Of 255. Low-contrast images are skipped: their hashes collide.
_MIN_CONTRAST = 8
# Of 255, between the mean colors of two cells. Compressing again and scaling change at most five.
_MAX_COLOR_DISTANCE = 16
# Colors are compared in 3 x 3 cells.
_COLOR_CELLS = 3
# Pixels of a cell's average, across and down, nearest to even distances: all of an image's pixels
# take 6 times as long. With half as many, scaled copies differ in more bits.
_SAMPLES = 32


class DifferenceHash(NamedTuple):
    """What near-duplicates have in common.

    Attributes:
        bits: Whether cells are darker than their neighbors, 128 bits.
        colors: The mean colors of 3 x 3 cells, 27 bytes in hex.
    """

    bits: int
    colors: str

    def is_near(self, other: "DifferenceHash") -> bool:
        """Return whether two images look the same."""
        if (self.bits ^ other.bits).bit_count() > _MAX_DISTANCE:
            return False
        pairs = zip(bytes.fromhex(self.colors), bytes.fromhex(other.colors), strict=True)
        return all(abs(one - another) <= _MAX_COLOR_DISTANCE for one, another in pairs)


def difference_hash(image: Image.Image) -> DifferenceHash | None:
    """Return an RGB image's difference hash; None if it has too little contrast."""
    sampled = (_SIDE + 1) * _SAMPLES
    small = image.resize((sampled, sampled), Image.Resampling.NEAREST).reduce(_SAMPLES)
    gray = small.convert("L")
    darkest, brightest = gray.getextrema()
    if not isinstance(darkest, int) or not isinstance(brightest, int):
        raise TypeError("a gray image has one band")
    if brightest - darkest < _MIN_CONTRAST:
        return None
    values, width = gray.tobytes(), _SIDE + 1
    bits = 0
    for row in range(_SIDE):
        for column in range(_SIDE):
            here = row * width + column
            bits = bits << 2 | (values[here] < values[here + 1]) << 1
            bits |= values[here] < values[here + width]
    return DifferenceHash(bits, small.reduce(width // _COLOR_CELLS).tobytes().hex())


def near_pairs(hashes: Sequence[DifferenceHash | None]) -> Iterator[tuple[int, int]]:
    """Yield the numbers of near-duplicates: the first image, and a later one that resembles it."""
    seen: list[dict[int, list[int]]] = [defaultdict(list) for _ in range(_PARTS)]
    distinct: dict[int, DifferenceHash] = {}
    size = -(-_BITS // _PARTS)
    for number, found in enumerate(hashes):
        if found is None:
            continue
        parts = [found.bits >> index * size & (1 << size) - 1 for index in range(_PARTS)]
        candidates = {other for index, part in enumerate(parts) for other in seen[index][part]}
        near = [it for it in candidates if found.is_near(distinct[it])]
        if near:
            yield min(near), number
            continue
        distinct[number] = found
        for index, part in enumerate(parts):
            if len(seen[index][part]) < _MAX_SHARING:
                seen[index][part].append(number)
