"""Images of the dataset as tensors of a training size."""

import math

import numpy as np
import torch
from PIL import Image

from tasks.buckets import Size
from tasks.data.images import UnreadableImageError, open_image, open_mask
from tasks.dataset import Sample
from tasks.store import Store, image_key
from worker.trainer.errors import ImageError

# The middle of what a crop leaves over, on both axes.
CENTRE = (0.5, 0.5)


def load_image(store: Store, sample: Sample) -> Image.Image:
    """A sample's image, upright, in RGB.

    Raises:
        ImageError: It cannot be read as an image.
    """
    try:
        return open_image(store.get(image_key(sample.image)))
    except UnreadableImageError as error:
        raise ImageError(sample.source, str(error)) from error


def load_mask(store: Store, source: str, mask: str) -> Image.Image:
    """A mask, grey, of its image's size.

    Raises:
        ImageError: It cannot be read as an image.
    """
    try:
        return open_mask(store.get(image_key(mask)))
    except UnreadableImageError as error:
        raise ImageError(f"{source} (its mask)", str(error)) from error


def covering_size(original: Size, size: Size) -> Size:
    """The smallest size of the original's shape that covers ``size`` on both sides."""
    scale = max(size.width / original.width, size.height / original.height)
    return Size(
        max(size.width, round(original.width * scale)),
        max(size.height, round(original.height * scale)),
    )


def resized_to_cover(image: Image.Image, size: Size) -> Image.Image:
    """The smallest resize of the image that covers ``size`` on both sides."""
    covering = covering_size(Size(*image.size), size)
    if covering == image.size:
        return image
    return image.resize(covering, Image.Resampling.LANCZOS)


def crop_corner(covering: Size, size: Size, place: tuple[float, float]) -> tuple[int, int]:
    """Left and top of what is cut out.

    Args:
        covering: The size that is cut from.
        size: What to cut out.
        place: Where, from 0 (left, top) to 1 (right, bottom), on each axis.
    """
    left = math.floor((covering.width - size.width) * place[0])
    top = math.floor((covering.height - size.height) * place[1])
    return left, top


def cropped(image: Image.Image, size: Size, place: tuple[float, float]) -> Image.Image:
    """The image, at least of ``size``, cut to it; see ``crop_corner``."""
    left, top = crop_corner(Size(*image.size), size, place)
    return image.crop((left, top, left + size.width, top + size.height))


def latent_mask(mask: Image.Image, factor: int, *, flipped: bool) -> torch.Tensor:
    """A grey mask at the latents' size, (1, h, w) in [0, 1], mirrored where ``flipped``.

    Each latent gets the mean of the ``factor`` x ``factor`` pixels it stands for.
    """
    values = torch.from_numpy(np.array(mask)).to(torch.float32)[None] / 255  # (1, H, W)
    small = torch.nn.functional.avg_pool2d(values, factor)  # (1, h, w)
    return small.flip(-1) if flipped else small


def pixels(image: Image.Image, *, flipped: bool) -> torch.Tensor:
    """The image as a tensor (3, H, W) of float32 in [-1, 1], mirrored where ``flipped``."""
    values = torch.from_numpy(np.array(image))  # (H, W, 3) uint8
    values = values.permute(2, 0, 1).to(torch.float32) / 127.5 - 1.0  # (3, H, W)
    return values.flip(-1) if flipped else values
