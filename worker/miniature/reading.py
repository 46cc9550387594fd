"""Reads an image of a miniature model, by plain image analysis: no model judges another.

A row of a background has one color, which its ends show. The shape is what differs from that.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from worker.miniature.images import (
    BACKGROUNDS,
    COLORS,
    CONCEPT_SHAPE,
    PLACES,
    SHAPES,
    Caption,
    shape_mask,
)

Pixels = NDArray[np.float32]
Mask = NDArray[np.bool_]

# A pixel whose color is farther than this from its background's, of 441, is the shape's.
_MIN_DISTANCE = 90.0
# Less of an image than this is dirt, not a shape; more is no shape, either.
_MIN_AREA, _MAX_AREA = 0.01, 0.5
_SIDE = 64
# How much of its outline a shape shares with the ideal one: intersection over union.
_MIN_OVERLAP = 0.75
# Colors of an image may be as far as this from the named ones, of 441.
_MAX_COLOR_ERROR = 60.0


@dataclass(frozen=True)
class Reading:
    """What an image shows; an empty word where that is unclear.

    Attributes:
        caption: What it shows.
        overlap: How much of its outline the shape shares with the ideal one, 0 to 1.
    """

    caption: Caption
    overlap: float

    def is_right(self, caption: Caption) -> bool:
        """Return whether the image shows all that a caption says."""
        return all(said in ("", seen) for said, seen in zip(caption, self.caption, strict=True))


def read(image: Image.Image) -> Reading:
    """Read an image."""
    pixels = np.asarray(image.convert("RGB"), np.float32)  # (H, W, 3)
    mask = _shape_of(pixels)
    background = _background_of(pixels)
    if not _MIN_AREA < mask.mean() < _MAX_AREA:
        return Reading(Caption("", "", background), 0.0)
    shape, overlap = _nearest_shape(mask)
    color = _nearest(np.median(pixels[_inner(mask)], axis=0), COLORS)
    return Reading(Caption(shape, color, background, _place_of(mask)), overlap)


def shape_overlap(image: Image.Image, shape: str) -> float:
    """Return how much of its outline an image's shape shares with the ideal one, 0 to 1."""
    mask = _shape_of(np.asarray(image.convert("RGB"), np.float32))
    return _overlap(_normalized(mask), _ideal(shape)) if mask.any() else 0.0


def _shape_of(pixels: Pixels) -> Mask:
    """Return the pixels that are no background's, (H, W)."""
    edge = max(1, pixels.shape[1] // 32)
    ends = np.concatenate([pixels[:, :edge], pixels[:, -edge:]], axis=1)  # (H, 2 edge, 3)
    rows = np.median(ends, axis=1, keepdims=True)  # (H, 1, 3)
    distances: Pixels = np.linalg.norm(pixels - rows, axis=2)
    return distances > _MIN_DISTANCE


def _background_of(pixels: Pixels) -> str:
    edge = max(2, pixels.shape[0] // 16)
    ends = np.concatenate(
        [np.median(rows, axis=(0, 1)) for rows in (pixels[:edge], pixels[-edge:])]
    )
    colors = {name: (*top, *bottom) for name, (top, bottom) in BACKGROUNDS.items()}
    return _nearest(ends, colors)


def _place_of(mask: Mask) -> str:
    """Return the place that is nearest to the middle of a shape's box."""
    (top, bottom), (left, right) = _box(mask)
    middle = ((left + right) / 2 / mask.shape[1], (top + bottom) / 2 / mask.shape[0])
    distances = {name: np.hypot(*np.subtract(middle, place)) for name, place in PLACES.items()}
    nearest = min(distances, key=lambda name: distances[name])
    # Half of the distance between two places.
    return nearest if distances[nearest] < 0.11 else ""


def _nearest(values: Pixels, named: Mapping[str, tuple[int, ...]]) -> str:
    """Return the name of the nearest colors; empty if none is near."""
    distances = {
        name: float(np.abs(values - np.array(colors)).reshape(-1, 3).max(axis=1).max())
        for name, colors in named.items()
    }
    nearest = min(distances, key=lambda name: distances[name])
    return nearest if distances[nearest] <= _MAX_COLOR_ERROR else ""


def _nearest_shape(mask: Mask) -> tuple[str, float]:
    seen = _normalized(mask)
    overlaps = {shape: _overlap(seen, _ideal(shape)) for shape in (*SHAPES, CONCEPT_SHAPE)}
    nearest = max(overlaps, key=lambda name: overlaps[name])
    return (nearest if overlaps[nearest] >= _MIN_OVERLAP else ""), overlaps[nearest]


def _overlap(one: Mask, other: Mask) -> float:
    return float((one & other).sum() / max(1, (one | other).sum()))


@cache
def _ideal(shape: str) -> Mask:
    return _normalized(np.asarray(shape_mask(shape, 4 * _SIDE)) > 127)


def _normalized(mask: Mask) -> Mask:
    """Return a shape's box, scaled to one side and in the middle of a square."""
    (top, bottom), (left, right) = _box(mask)
    side = max(bottom - top, right - left)
    square = np.zeros((side, side), np.uint8)
    y, x = (side - (bottom - top)) // 2, (side - (right - left)) // 2
    square[y : y + bottom - top, x : x + right - left] = 255 * mask[top:bottom, left:right]
    return np.asarray(Image.fromarray(square).resize((_SIDE, _SIDE))) > 127


def _box(mask: Mask) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return the first and behind the last row, and column, with more than a speck of the shape."""
    bounds = []
    for axis in (1, 0):
        lines = np.flatnonzero(mask.sum(axis=axis) > 0)
        bounds.append((int(lines[0]), int(lines[-1]) + 1))
    return bounds[0], bounds[1]


def _inner(mask: Mask) -> Mask:
    """Return a shape without its edge, whose colors are mixed; all of it if that is all."""
    padded = np.pad(mask, 1)
    inner = mask.copy()
    for dy, dx in ((0, 1), (2, 1), (1, 0), (1, 2)):
        inner &= padded[dy : dy + mask.shape[0], dx : dx + mask.shape[1]]
    return inner if inner.any() else mask
