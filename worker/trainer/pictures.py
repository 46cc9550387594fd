"""Pictures of the data set as tensors of a training size."""

import math

import numpy as np
import torch
from PIL import Image

from tasks.buckets import Size
from tasks.dataset import Sample
from tasks.pictures import UnreadablePictureError, open_picture
from tasks.store import Store, image_key
from worker.trainer.errors import PictureError

# The middle of what a crop leaves over, on both axes.
CENTRE = (0.5, 0.5)


def load_picture(store: Store, sample: Sample) -> Image.Image:
    """A sample's picture, upright, in RGB.

    Raises:
        PictureError: It cannot be read as an image.
    """
    try:
        return open_picture(store.get(image_key(sample.image)))
    except UnreadablePictureError as error:
        raise PictureError(sample.source, str(error)) from error


def resized_to_cover(picture: Image.Image, size: Size) -> Image.Image:
    """The smallest resize of the picture that covers ``size`` on both sides."""
    scale = max(size.width / picture.width, size.height / picture.height)
    covering = (
        max(size.width, round(picture.width * scale)),
        max(size.height, round(picture.height * scale)),
    )
    if covering == picture.size:
        return picture
    return picture.resize(covering, Image.Resampling.LANCZOS)


def cropped(picture: Image.Image, size: Size, place: tuple[float, float]) -> Image.Image:
    """The picture cut to ``size``.

    Args:
        picture: At least of that size.
        size: What to cut out.
        place: Where, from 0 (left, top) to 1 (right, bottom), on each axis.
    """
    left = math.floor((picture.width - size.width) * place[0])
    top = math.floor((picture.height - size.height) * place[1])
    return picture.crop((left, top, left + size.width, top + size.height))


def pixels(picture: Image.Image, *, flipped: bool) -> torch.Tensor:
    """The picture as a tensor (3, H, W) of float32 in [-1, 1], mirrored where ``flipped``."""
    values = torch.from_numpy(np.array(picture))  # (H, W, 3) uint8
    values = values.permute(2, 0, 1).to(torch.float32) / 127.5 - 1.0  # (3, H, W)
    return values.flip(-1) if flipped else values
