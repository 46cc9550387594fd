"""A small dataset for the demo: drawn images with matching captions."""

from pathlib import Path

from PIL import Image, ImageDraw, ImageFilter

_SHAPES = {
    "circle": lambda draw, box, color: draw.ellipse(box, fill=color),
    "square": lambda draw, box, color: draw.rectangle(box, fill=color),
    "diamond": lambda draw, box, color: draw.polygon(_diamond(box), fill=color),
}
# Shape, color, the background's colors at top and bottom, width and height in pixels.
_IMAGES = (
    ("circle", "crimson", ("lightyellow", "orange"), (256, 256)),
    ("circle", "royalblue", ("mintcream", "seagreen"), (320, 224)),
    ("circle", "gold", ("lavender", "indigo"), (224, 320)),
    ("square", "crimson", ("lightcyan", "teal"), (256, 256)),
    ("square", "royalblue", ("lightyellow", "orange"), (224, 320)),
    ("square", "gold", ("mintcream", "seagreen"), (320, 224)),
    ("diamond", "crimson", ("lavender", "indigo"), (320, 224)),
    ("diamond", "royalblue", ("lightcyan", "teal"), (256, 256)),
)


def draw_demo_images(folder: Path) -> None:
    """Draw eight images with captions into a folder; deterministic."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, (shape, color, (top, bottom), size) in enumerate(_IMAGES, start=1):
        image = _gradient(top, bottom, size)
        margin = min(size) // 5
        left, upper = (size[0] - min(size)) // 2 + margin, (size[1] - min(size)) // 2 + margin
        side = min(size) - 2 * margin
        _SHAPES[shape](ImageDraw.Draw(image), (left, upper, left + side, upper + side), color)
        image.filter(ImageFilter.SMOOTH).save(folder / f"{number:02d}.png")
        caption = f"a {color} {shape} on a field from {top} to {bottom}"
        (folder / f"{number:02d}.txt").write_text(caption + "\n", "utf-8")


def _gradient(top: str, bottom: str, size: tuple[int, int]) -> Image.Image:
    mask = Image.linear_gradient("L").resize(size)
    return Image.composite(Image.new("RGB", size, bottom), Image.new("RGB", size, top), mask)


def _diamond(box: tuple[int, int, int, int]) -> list[tuple[int, int]]:
    left, upper, right, lower = box
    middle, centre = (left + right) // 2, (upper + lower) // 2
    return [(middle, upper), (right, centre), (middle, lower), (left, centre)]
