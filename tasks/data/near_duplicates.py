"""Images that look the same though their pixels differ: scaled, or compressed again.

By difference hashes: whether each cell of a small grey copy is brighter than its neighbour, across
and down, 64 bits each (after N. Krawetz, "Kind of like that", 2013).
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence

from PIL import Image

_SIDE = 8
# Of 128 bits. Compressing again turns up to some four; other photographs differ in thirty and more.
_NEAR = 4
# Among this many parts of a hash, one at least is the same where no more bits than that differ.
_PARTS = _NEAR + 1
_BITS = 2 * _SIDE * _SIDE
# Parts that very many images share, such as a plain background's, tell nothing and cost time.
_MAX_ALIKE = 200
# A flat image's hash says nothing: all flat ones look alike.
_MIN_CONTRAST = 8
# Of how many parts a cell is made, across and down. With fewer, cells overlap their neighbours and
# scaled copies differ in more bits; with more, Pillow takes longer.
_GAP = 16.0


def likeness_hash(image: Image.Image) -> int | None:
    """An image's hash of 128 bits; None where it has too little contrast for one."""
    small = image.resize((_SIDE + 1, _SIDE + 1), Image.Resampling.BOX, reducing_gap=_GAP)
    grey = small.convert("L")
    darkest, brightest = grey.getextrema()
    if not isinstance(darkest, int) or not isinstance(brightest, int):
        raise TypeError("a grey image has one band")
    if brightest - darkest < _MIN_CONTRAST:
        return None
    values, width = grey.tobytes(), _SIDE + 1
    bits = 0
    for row in range(_SIDE):
        for column in range(_SIDE):
            here = row * width + column
            bits = bits << 2 | (values[here] < values[here + 1]) << 1
            bits |= values[here] < values[here + width]
    return bits


def near_pairs(hashes: Sequence[int | None]) -> Iterator[tuple[int, int]]:
    """The numbers of images that look the same, each later one with its first likeness."""
    seen: list[dict[int, list[int]]] = [defaultdict(list) for _ in range(_PARTS)]
    size = -(-_BITS // _PARTS)
    for number, bits in enumerate(hashes):
        if bits is None:
            continue
        parts = [bits >> place * size & (1 << size) - 1 for place in range(_PARTS)]
        candidates = {it for place, part in enumerate(parts) for it in seen[place][part]}
        near = [it for it in candidates if _distance(bits, hashes[it]) <= _NEAR]
        if near:
            yield min(near), number
            continue
        for place, part in enumerate(parts):
            if len(seen[place][part]) < _MAX_ALIKE:
                seen[place][part].append(number)


def _distance(one: int, other: int | None) -> int:
    return _BITS if other is None else (one ^ other).bit_count()
