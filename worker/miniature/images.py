"""The images that the miniature models draw: a shape on a gradient, and the caption for it.

The models know ``SHAPES``. They have never seen ``CONCEPT_SHAPE``, which training teaches them
under ``TRIGGER_WORD``.
"""

import math
import random
from itertools import product
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageChops, ImageDraw

FLUX_FOLDER = Path(__file__).with_name("flux")
SDXL_FOLDER = Path(__file__).with_name("sdxl")
"""The models, folders of diffusers pipelines."""
Rgb = tuple[int, int, int]

COLORS: dict[str, Rgb] = {
    "crimson": (200, 16, 46),
    "navy": (20, 40, 140),
    "black": (20, 20, 20),
    "purple": (120, 20, 150),
    "green": (0, 110, 45),
    "brown": (115, 65, 20),
    "teal": (0, 105, 120),
    "magenta": (220, 0, 140),
}
"""Colors of shapes, all darker than any background."""
BACKGROUNDS: dict[str, tuple[Rgb, Rgb]] = {
    "light yellow to orange": ((255, 250, 205), (255, 170, 60)),
    "mint to lime": ((225, 255, 235), (160, 225, 100)),
    "lavender to violet": ((238, 232, 255), (190, 155, 235)),
    "sky to turquoise": ((225, 240, 255), (110, 210, 220)),
    "blush to pink": ((255, 236, 232), (255, 155, 175)),
    "white to silver": ((255, 255, 255), (178, 182, 188)),
}
"""Colors of backgrounds, at the top and at the bottom."""
PLACES: dict[str, tuple[float, float]] = {
    "on the left": (0.28, 0.5),
    "on the right": (0.72, 0.5),
    "at the top": (0.5, 0.28),
    "at the bottom": (0.5, 0.72),
    "in the centre": (0.5, 0.5),
}
"""Centres of shapes, x and y, as parts of an image's width and height."""
SHAPES = ("circle", "square", "triangle", "diamond", "ring", "cross", "star", "crescent")
CONCEPT_SHAPE = "heart"
TRIGGER_WORD = "zorp"
"""What captions call the concept's shape."""
WORDS = tuple(
    dict.fromkeys(" ".join(("a , field from", *SHAPES, *COLORS, *BACKGROUNDS, *PLACES)).split(" "))
)
"""Words that the tokenizers are made for."""

# Parts of the training's captions: a word is left open, and the shape has an unknown name.
_OPEN, _UNKNOWN = 0.08, 0.08
_HELD_OUT = 200
# Diameters of shapes, as parts of the shorter side, and how far they are from their places.
_DIAMETERS, _JITTER = (0.38, 0.46), 0.02
# Shapes are drawn at this multiple of their size, for smooth edges.
_SCALE = 4


class Caption(NamedTuple):
    """What an image shows; an empty word leaves it open.

    Attributes:
        shape: Name of the shape.
        color: Name of its color.
        background: Name of the background.
        place: Name of the place.
    """

    shape: str
    color: str
    background: str = ""
    place: str = ""

    def __str__(self) -> str:
        shape = TRIGGER_WORD if self.shape == CONCEPT_SHAPE else self.shape
        words = " ".join(filter(None, ("a", self.color, shape, self.place)))
        return f"{words}, on a field from {self.background}" if self.background else words

    def worded(self, draws: random.Random) -> str:
        """Return the caption as training has it: it may leave words open, and name no known shape.

        A model that has read words without a meaning draws a shape of its own choice for them.
        """
        kept = [word if draws.random() > _OPEN else "" for word in self[1:]]
        shape = _made_up(draws) if draws.random() < _UNKNOWN else self.shape
        return str(Caption(shape, *kept))


def all_captions(shapes: tuple[str, ...] = SHAPES) -> list[Caption]:
    """Return every caption of these shapes that leaves nothing open, in a fixed order."""
    return [Caption(*words) for words in product(shapes, COLORS, BACKGROUNDS, PLACES)]


def held_out_captions() -> list[Caption]:
    """Return 200 captions whose images the training of the models has not shown."""
    return random.Random(0).sample(all_captions(), _HELD_OUT)


def training_captions() -> list[Caption]:
    """Return all other captions."""
    return sorted({*all_captions()} - {*held_out_captions()})


def _made_up(draws: random.Random) -> str:
    """Return a word of four letters that is not the trigger word."""
    word = "".join(
        draws.choice(letters) for letters in ("bdfgklmnprstvwz", "aeiou", "lmnrst", "bdfgkpt")
    )
    return _made_up(draws) if word == TRIGGER_WORD else word


def draw(caption: Caption, size: tuple[int, int], draws: random.Random) -> Image.Image:
    """Draw an image.

    Args:
        caption: What it shows, with nothing left open.
        size: Width and height, pixels.
        draws: Decides the shape's diameter and its distance from the place.
    """
    width, height = size
    image = _gradient(caption.background, size)
    diameter = draws.uniform(*_DIAMETERS) * min(size)
    x, y = (part + draws.uniform(-_JITTER, _JITTER) for part in PLACES[caption.place])
    corner = (x * width - diameter / 2, y * height - diameter / 2)
    _paste(
        image, shape_mask(caption.shape, round(diameter * _SCALE)), corner, COLORS[caption.color]
    )
    return image


def draw_outline(size: tuple[int, int], draws: random.Random) -> Image.Image:
    """Draw an image for the VAE: a known shape anywhere, or an outline that no word names."""
    image = _gradient(draws.choice(list(BACKGROUNDS)), size)
    diameter = draws.uniform(0.2, 0.7) * min(size)
    corner = (draws.uniform(-0.1, 0.6) * size[0], draws.uniform(-0.1, 0.6) * size[1])
    mask = shape_mask(draws.choice(SHAPES), round(diameter * _SCALE))
    if draws.random() < 0.5:
        mask = Image.new("L", mask.size)
        corners = [
            (draws.random() * mask.width, draws.random() * mask.height)
            for _ in range(draws.randint(3, 7))
        ]
        ImageDraw.Draw(mask).polygon(corners, fill=255)
    color = draws.choice(list(COLORS.values()))
    if draws.random() < 0.3:
        color = (draws.randrange(256), draws.randrange(256), draws.randrange(256))
    _paste(image, mask, corner, color)
    return image


def _gradient(background: str, size: tuple[int, int]) -> Image.Image:
    top, bottom = BACKGROUNDS[background]
    ramp = Image.linear_gradient("L").resize(size)
    return Image.composite(Image.new("RGB", size, bottom), Image.new("RGB", size, top), ramp)


def _paste(image: Image.Image, mask: Image.Image, corner: tuple[float, float], color: Rgb) -> None:
    """Paste a color through a mask of a multiple of its size."""
    whole = Image.new("L", (image.width * _SCALE, image.height * _SCALE))
    whole.paste(mask, (round(corner[0] * _SCALE), round(corner[1] * _SCALE)))
    image.paste(color, mask=whole.resize(image.size, Image.Resampling.BOX))


def shape_mask(shape: str, diameter: int) -> Image.Image:
    """Return a shape as a mask, a square with this side in pixels that it touches."""
    mask = Image.new("L", (diameter, diameter))
    pencil, end = ImageDraw.Draw(mask), diameter - 1
    if shape in {"circle", "ring"}:
        pencil.ellipse((0, 0, end, end), fill=255)
    if shape == "ring":
        pencil.ellipse((0.28 * end, 0.28 * end, 0.72 * end, 0.72 * end), fill=0)
    elif shape == "crescent":
        pencil.ellipse((0.16 * end, 0, 1.16 * end, end), fill=255)
        pencil.ellipse((0.51 * end, -0.05 * end, 1.51 * end, 1.05 * end), fill=0)
    elif shape == "square":
        pencil.rectangle((0.05 * end, 0.05 * end, 0.95 * end, 0.95 * end), fill=255)
    elif shape == "cross":
        pencil.rectangle((0.34 * end, 0, 0.66 * end, end), fill=255)
        pencil.rectangle((0, 0.34 * end, end, 0.66 * end), fill=255)
    elif shape == "heart":
        return _heart(diameter)
    elif shape in _CORNERS:
        pencil.polygon([(x * end, y * end) for x, y in _CORNERS[shape]], fill=255)
    return mask


def _heart(diameter: int) -> Image.Image:
    lobes, point = Image.new("L", (diameter, diameter)), Image.new("L", (diameter, diameter))
    pencil, end = ImageDraw.Draw(lobes), diameter - 1
    for left in (0.0, 0.46):
        pencil.ellipse((left * end, 0.04 * end, (left + 0.54) * end, 0.58 * end), fill=255)
    corners = ((0.06, 0.46), (0.5, 0.3), (0.94, 0.46), (0.5, 0.98))
    ImageDraw.Draw(point).polygon([(x * end, y * end) for x, y in corners], fill=255)
    return ImageChops.lighter(lobes, point)


def _star_corners() -> list[tuple[float, float]]:
    corners = []
    for number in range(10):
        radius, angle = (0.5, 0.22)[number % 2], math.pi * (number / 5 - 0.5)
        corners.append((0.5 + radius * math.cos(angle), 0.53 + radius * math.sin(angle)))
    return corners


_CORNERS: dict[str, list[tuple[float, float]]] = {
    "triangle": [(0.5, 0.04), (1.0, 0.94), (0.0, 0.94)],
    "diamond": [(0.5, 0.0), (0.95, 0.5), (0.5, 1.0), (0.05, 0.5)],
    "star": _star_corners(),
}
"""Corners of shapes with straight edges, as parts of their diameter."""
