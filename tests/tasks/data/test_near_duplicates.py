import io
import random

from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from tasks.data.near_duplicates import DifferenceHash, difference_hash, near_pairs
from worker.miniature.images import COLORS, Caption, draw


def drawing(seed: int, side: int = 256) -> Image.Image:
    image = Image.new("RGB", (side, side), "white")
    draw = ImageDraw.Draw(image)
    for number in range(6):
        x, y = (
            (seed * 37 + number * 61) % 97 / 97 * side,
            (seed * 53 + number * 29) % 89 / 89 * side,
        )
        color = tuple((seed * k + number * 40) % 256 for k in (3, 5, 7))
        draw.ellipse((x, y, x + side / 3, y + side / 4), fill=color)
    return image


def compressed(image: Image.Image, quality: int) -> Image.Image:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return Image.open(file).convert("RGB")


def test_scaled_and_recompressed_images_are_near() -> None:
    images = [
        drawing(1),
        drawing(2),
        drawing(1).resize((190, 190)),
        compressed(drawing(1), 60),
        drawing(3),
        compressed(drawing(3, 200), 90),
    ]
    found = list(near_pairs([difference_hash(image) for image in images]))
    assert found == [(0, 2), (0, 3), (4, 5)]


def test_images_of_other_colors_are_not_near() -> None:
    captions = [Caption("heart", color, "mint to lime", "at the top") for color in COLORS]
    images = [draw(it, (256, 256), random.Random(1)) for it in captions]
    assert list(near_pairs([difference_hash(image) for image in images])) == []
    copies = [image for it in images for image in (it, compressed(it.resize((200, 200)), 50))]
    found = list(near_pairs([difference_hash(image) for image in copies]))
    assert found == [(number, number + 1) for number in range(0, len(copies), 2)]


def test_low_contrast_images_are_skipped() -> None:
    flat = [difference_hash(Image.new("RGB", (64, 64), color)) for color in ("red", "blue")]
    assert flat == [None, None]
    assert list(near_pairs(flat)) == []


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**128 - 1), st.sets(st.integers(0, 127), max_size=8))
def test_hashes_are_near_up_to_four_bits(bits: int, flipped: set[int]) -> None:
    other = bits
    for place in flipped:
        other ^= 1 << place
    hashes = [DifferenceHash(it, bytes(27).hex()) for it in (bits, other)]
    assert bool(list(near_pairs(hashes))) == (len(flipped) <= 4)


def test_a_scaled_copy_of_noise_is_the_nearest() -> None:
    draw = random.Random(0)
    noise = [Image.frombytes("RGB", (96, 96), draw.randbytes(27648)) for _ in range(8)]
    hashes = [difference_hash(image.resize((1024, 1024))) for image in noise]
    copies = [difference_hash(compressed(image.resize((900, 900)), 80)) for image in noise]
    for number, copy in enumerate(copies):
        assert copy is not None
        distances = [(copy.bits ^ it.bits).bit_count() for it in hashes if it is not None]
        assert len(distances) == len(noise)
        # The averages of its cells are exact enough that chance moves few of the bits.
        assert distances[number] <= 11 < 28 <= min(distances[:number] + distances[number + 1 :])
