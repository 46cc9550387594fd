import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageChops

from tasks.buckets import Size
from tasks.data.crops import CENTRE, covering_size, crop_corner, cropped, resized_to_cover
from tasks.data.decoding.color import values_of
from tests.tasks.data.hostile import run_python


def resized_whole(image: Image.Image, size: Size, place: tuple[float, float]) -> Image.Image:
    """Resize the whole image and crop it, as trainers of images do."""
    covering = covering_size(Size(*image.size), size)
    left, top = crop_corner(covering, size, place)
    whole = image.resize(covering, Image.Resampling.LANCZOS)
    return whole.crop((left, top, left + size.width, top + size.height))


def smooth(width: int, height: int) -> Image.Image:
    return Image.radial_gradient("L").resize((width, height), Image.Resampling.BICUBIC)


SIDES = st.integers(1, 400)
PLACES = st.sampled_from([CENTRE, (0.0, 0.0), (0.999, 0.999), (0.3, 0.7)])


@settings(max_examples=100, deadline=None)
@given(width=SIDES, height=SIDES, size=st.sampled_from([Size(64, 64), Size(128, 64)]), place=PLACES)
def test_a_crop_is_that_of_the_whole_image(
    width: int, height: int, size: Size, place: tuple[float, float]
) -> None:
    image = smooth(width, height)
    crop = cropped(resized_to_cover(image, size), size, place)
    assert crop.size == size
    covering = covering_size(Size(width, height), size)
    # Rounding of places, and between the two axes, in images of which most is cropped.
    allowed = 0 if covering.pixels <= 4 * size.pixels else 3
    difference = ImageChops.difference(crop, resized_whole(image, size, place))
    assert values_of(difference)[1] <= allowed


GROWTH = """
import re
from pathlib import Path
from PIL import Image
from tasks.buckets import Size
from tasks.data.decoding.color import values_of
from tasks.data.crops import CENTRE, cropped, resized_to_cover
image, size = Image.new("RGB", (16384, 1)), Size(512, 512)
cropped(resized_to_cover(image.crop((0, 0, 64, 1)), Size(64, 64)), Size(64, 64), CENTRE)
def peak():
    status = Path("/proc/self/status").read_text()
    return 1024 * int(re.findall("VmHWM:[ \\t]+([0-9]+)", status)[0])
Path("/proc/self/clear_refs").write_text("5")
before = peak()
cropped(resized_to_cover(image, size), size, CENTRE)
print((peak() - before) / (4 * size.pixels))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="other kernels do not report the peak")
def test_a_thin_image_takes_the_memory_of_its_crop() -> None:
    assert float(run_python(GROWTH)) < 10
