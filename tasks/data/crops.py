"""The crop of an image that a training size shows.

``prepare`` judges by it what is trained, and trainers train it.
"""

import math

from PIL import Image

from tasks.buckets import Size

CENTRE = (0.5, 0.5)
"""The place of a centre crop; see ``crop_corner``."""
# Times the crop. Of larger images, only the crop is resized: its pixels may differ by rounding.
_MAX_COVERING = 4


def covering_size(original: Size, size: Size) -> Size:
    """Return the smallest size of the original's shape that covers ``size`` on both sides."""
    scale = max(size.width / original.width, size.height / original.height)
    return Size(
        max(size.width, round(original.width * scale)),
        max(size.height, round(original.height * scale)),
    )


def resized_to_cover(image: Image.Image, size: Size) -> Image.Image:
    """Resize an image to the smallest size that covers ``size`` on both sides.

    Much longer or wider images are returned as they are: almost all of them is cropped.
    """
    covering = covering_size(Size(*image.size), size)
    if covering == image.size or covering.pixels > _MAX_COVERING * size.pixels:
        return image
    return image.resize(covering, Image.Resampling.LANCZOS)


def crop_corner(covering: Size, size: Size, place: tuple[float, float]) -> tuple[int, int]:
    """Return left and top of a crop.

    Args:
        covering: The size of the image.
        size: The size of the crop.
        place: The place on each axis, from 0 (left, top) to 1 (right, bottom).
    """
    left = math.floor((covering.width - size.width) * place[0])
    top = math.floor((covering.height - size.height) * place[1])
    return left, top


def cropped(image: Image.Image, size: Size, place: tuple[float, float]) -> Image.Image:
    """Crop an image that ``resized_to_cover`` returns; see ``crop_corner``."""
    covering = covering_size(Size(*image.size), size)
    left, top = crop_corner(covering, size, place)
    right, bottom = left + size.width, top + size.height
    if covering == image.size:
        return image.crop((left, top, right, bottom))
    across, down = image.width / covering.width, image.height / covering.height
    kept = (left * across, top * down, right * across, bottom * down)
    return image.resize(size, Image.Resampling.LANCZOS, box=kept)
