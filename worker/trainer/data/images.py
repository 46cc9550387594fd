"""Images of the dataset as tensors of a training size."""

import numpy as np
import torch
from PIL import Image

from tasks.data.decoding.image_file import UnreadableImageError
from tasks.data.decoding.images import open_image, open_mask
from tasks.dataset import Sample
from tasks.store import Store, image_key
from worker.trainer.errors import ImageError


def load_image(store: Store, sample: Sample) -> Image.Image:
    """Read a sample's image, upright, in RGB.

    Raises:
        ImageError: The file cannot be read as an image.
    """
    try:
        return open_image(store.get(image_key(sample.image)))
    except UnreadableImageError as error:
        raise ImageError(sample.source, str(error)) from error


def load_mask(store: Store, source: str, mask: str) -> Image.Image:
    """Read a mask, grey, of its image's size.

    Raises:
        ImageError: The file cannot be read as an image.
    """
    try:
        return open_mask(store.get(image_key(mask)))
    except UnreadableImageError as error:
        raise ImageError(f"{source} (its mask)", str(error)) from error


def latent_mask(mask: Image.Image, factor: int, *, flipped: bool) -> torch.Tensor:
    """Return a grey mask at the latents' size, (1, h, w) in [0, 1], mirrored if ``flipped``.

    Each latent gets the mean of its ``factor`` x ``factor`` pixels.
    """
    values = torch.from_numpy(np.array(mask)).to(torch.float32)[None] / 255  # (1, H, W)
    small = torch.nn.functional.avg_pool2d(values, factor)  # (1, h, w)
    return small.flip(-1) if flipped else small


def pixels(image: Image.Image, *, flipped: bool) -> torch.Tensor:
    """Return an image as a tensor (3, H, W), float32 in [-1, 1], mirrored if ``flipped``."""
    values = torch.from_numpy(np.array(image))  # (H, W, 3) uint8
    values = values.permute(2, 0, 1).to(torch.float32) / 127.5 - 1.0  # (3, H, W)
    return values.flip(-1) if flipped else values
