"""The check of an image file and its mask, which decoders do."""

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image

from tasks.buckets import Size, nearest_bucket
from tasks.data.crops import CENTRE, cropped, resized_to_cover
from tasks.data.decoding.image_file import (
    ImageHeader,
    UnreadableImageError,
    check_memory,
    read_header,
)
from tasks.data.decoding.images import (
    ImageFacts,
    MaskFacts,
    decode_image,
    decode_mask,
    image_digest,
    open_image,
)
from tasks.data.near_duplicates import DifferenceHash, difference_hash
from tasks.data.opening import open_resolved, read_resolved

MAX_FILE_BYTES = 512 * 2**20
"""Larger than any training image; a file is held in memory while it is read."""


class UnusableFileError(ValueError):
    """The file of an image or mask cannot be used; the message says why."""


@dataclass(frozen=True)
class MaskFile:
    """The mask of an image, and what of the image is trained.

    Attributes:
        path: The mask's file.
        sizes: The training sizes, of which the image gets the nearest.
        center_crop: Whether the centre is trained, or another crop at each step.
    """

    path: Path
    sizes: tuple[Size, ...]
    center_crop: bool


@dataclass(frozen=True)
class CheckedMask:
    """A mask that can be used.

    Attributes:
        digest: See ``image_digest``.
        sha256: The digest of the file's bytes, in hex.
        facts: The properties of the file.
        coverage: The mean of its values where the image is trained, from 0 to 1.
    """

    digest: str
    sha256: str
    facts: MaskFacts
    coverage: float


@dataclass(frozen=True)
class CheckedImage:
    """An image that can be used.

    Attributes:
        digest: See ``image_digest``.
        sha256: The digest of the file's bytes, in hex.
        width: In pixels, upright.
        height: In pixels, upright.
        facts: The properties of the file.
        hash: See ``difference_hash``.
        mask: The image's mask, if it has one.
    """

    digest: str
    sha256: str
    width: int
    height: int
    facts: ImageFacts
    hash: DifferenceHash | None
    mask: CheckedMask | None


def check_image(
    path: Path, mask_file: MaskFile | None, reserve: Callable[[int], None]
) -> CheckedImage:
    """Decode an image and its mask.

    Args:
        path: The image's file.
        mask_file: The mask's file, if there is one.
        reserve: Waits until a number of bytes of memory is available.

    Raises:
        UnreadableImageError: The image cannot be decoded.
        UnusableFileError: A file cannot be read, or the mask cannot be used.
    """
    size, header = _header(path)
    needed = size + header.decoding_bytes
    if mask_file is not None:
        with _mask_named():
            mask_size, mask_header = _header(mask_file.path)
            # Either may be rotated: its sides are swapped when it becomes upright.
            if set(mask_header.size) != set(header.size):
                raise _other_size(mask_header.size, header.size)
        needed = size + mask_size + max(header.decoding_bytes, mask_header.decoding_bytes)
    check_memory(needed)
    reserve(needed)
    data = read_resolved(path)
    image, facts = decode_image(data)
    checked = CheckedImage(
        digest=image_digest(image),
        sha256=hashlib.sha256(data).hexdigest(),
        width=image.width,
        height=image.height,
        facts=facts,
        hash=difference_hash(image),
        mask=None,
    )
    if mask_file is None:
        return checked
    # A large image and its mask would not fit into memory together.
    del image
    with _mask_named():
        return replace(checked, mask=_check_mask(mask_file, checked))


def make_thumbnail(path: Path, thumbnail: Path, side: int, reserve: Callable[[int], None]) -> None:
    """Write a JPEG of an image that fits into a square.

    Raises:
        UnreadableImageError: The image cannot be decoded.
        UnusableFileError: The file cannot be read.
    """
    size, header = _header(path)
    check_memory(size + header.decoding_bytes)
    reserve(size + header.decoding_bytes)
    image = open_image(read_resolved(path))
    image.thumbnail((side, side))
    image.save(thumbnail, "JPEG", quality=80)


def _header(path: Path) -> tuple[int, ImageHeader]:
    """Return a file's size and its image's header."""
    with open_resolved(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > MAX_FILE_BYTES:
            raise UnusableFileError(f"is larger than {MAX_FILE_BYTES // 2**20} MiB")
        return size, read_header(file)


def _check_mask(file: MaskFile, image: CheckedImage) -> CheckedMask:
    data = read_resolved(file.path)
    mask, facts = decode_mask(data)
    size = Size(image.width, image.height)
    if mask.size != size:
        raise _other_size(mask.size, size)
    if facts.brightest == 0:
        raise UnusableFileError("is all black: no pixel would be trained")
    bucket = nearest_bucket(size, file.sizes)
    trained = resized_to_cover(mask, bucket)
    if file.center_crop:
        trained = cropped(trained, bucket, CENTRE)
    if trained.getbbox() is None:
        crop = "cropped" if file.center_crop else "resized"
        raise UnusableFileError(f"is all black when {crop} to {bucket}: no pixel would be trained")
    sha256 = hashlib.sha256(data).hexdigest()
    return CheckedMask(image_digest(mask), sha256, facts, _mean(trained) / 255)


def _mean(gray: Image.Image) -> float:
    counts = gray.histogram()
    return sum(value * count for value, count in enumerate(counts)) / sum(counts)


@contextmanager
def _mask_named() -> Iterator[None]:
    """Name the mask in errors, which are reported for its image."""
    try:
        yield
    except (OSError, UnreadableImageError, UnusableFileError) as error:
        reason = str(error)
        if isinstance(error, OSError):
            reason = f"cannot be read: {error.strerror or error}"
        raise UnusableFileError(f"has a mask that {reason}") from error


def _other_size(mask: tuple[int, int], image: tuple[int, int]) -> UnusableFileError:
    sizes = f"{mask[0]}x{mask[1]}, not {image[0]}x{image[1]}"
    return UnusableFileError(f"is of another size: {sizes}")
