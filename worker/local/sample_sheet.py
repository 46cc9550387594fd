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
    found = {path: match for path in folder.iterdir() if (match := _NAME.fullmatch(path.name))}
    steps = sorted({int(match["step"]) for match in found.values()})
    rows = sorted({match["row"] for match in found.values()})
    width, height = Image.open(next(iter(found))).size
    across, down = width + _GAP, height + _GAP
    sheet = Image.new("RGB", (across * len(steps) + _GAP, down * len(rows) + _TITLE), "white")
    for column, step in enumerate(steps):
        place = (_GAP + column * across + width // 2, _TITLE // 2)
        ImageDraw.Draw(sheet).text(place, f"step {step}", fill="black", anchor="mm")
    for source, match in found.items():
        column, row = steps.index(int(match["step"])), rows.index(match["row"])
        sheet.paste(Image.open(source), (_GAP + column * across, _TITLE + row * down))
    sheet.save(path)
