"""Near-duplicate images: the same image, scaled or compressed again.

They are found by difference hashes: whether each cell of a small gray copy is darker than its
neighbor, across and down, 64 bits each (after N. Krawetz, "Kind of like that", 2013).
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence

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
# Pixels of a cell's average, across and down, nearest to even distances: all of an image's pixels
# take 6 times as long. With half as many, scaled copies differ in more bits.
_SAMPLES = 32


def difference_hash(image: Image.Image) -> int | None:
    """Return an image's difference hash, 128 bits; None if it has too little contrast."""
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
    return bits


def near_pairs(hashes: Sequence[int | None]) -> Iterator[tuple[int, int]]:
    """Yield the numbers of near-duplicates: the first image, and a later one that resembles it."""
    seen: list[dict[int, list[int]]] = [defaultdict(list) for _ in range(_PARTS)]
    size = -(-_BITS // _PARTS)
    for number, bits in enumerate(hashes):
        if bits is None:
            continue
        parts = [bits >> index * size & (1 << size) - 1 for index in range(_PARTS)]
        candidates = {other for index, part in enumerate(parts) for other in seen[index][part]}
        near = [
            candidate
            for candidate in candidates
            if _distance(bits, hashes[candidate]) <= _MAX_DISTANCE
        ]
        if near:
            yield min(near), number
            continue
        for index, part in enumerate(parts):
            if len(seen[index][part]) < _MAX_SHARING:
                seen[index][part].append(number)


def _distance(one: int, other: int | None) -> int:
    return _BITS if other is None else (one ^ other).bit_count()
