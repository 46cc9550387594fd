"""All samples of a job in one image: a row for each, a column for each step."""

import re
from pathlib import Path

from PIL import Image, ImageDraw

_NAME = re.compile(r"validation-(?P<step>\d+)-(?P<row>\d+-\d+)\.png")
_GAP, _TITLE = 6, 18


def write_sample_sheet(folder: Path, path: Path) -> None:
    """Write the sheet.

    Args:
        folder: The published ``validation`` folder, with images of one size.
        path: The PNG file to write.
    """
    found: dict[tuple[int, str], Image.Image] = {}
    for source in folder.iterdir():
        if match := _NAME.fullmatch(source.name):
            with Image.open(source) as image:
                found[int(match["step"]), match["row"]] = image.convert("RGB")
    steps, rows = (sorted(set(it)) for it in zip(*found, strict=True))
    width, height = next(iter(found.values())).size
    across, down = width + _GAP, height + _GAP
    sheet = Image.new("RGB", (across * len(steps) + _GAP, down * len(rows) + _TITLE), "white")
    for column, step in enumerate(steps):
        place = (_GAP + column * across + width // 2, _TITLE // 2)
        ImageDraw.Draw(sheet).text(place, f"step {step}", fill="black", anchor="mm")
        for row, name in enumerate(rows):
            if (step, name) in found:
                sheet.paste(found[step, name], (_GAP + column * across, _TITLE + row * down))
    sheet.save(path)
