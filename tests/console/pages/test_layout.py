"""The colours of the style sheet, two by two, by the contrast that WCAG 2.2 AA asks for."""

import re
from pathlib import Path

import pytest

SHEET = Path("console/pages/assets/console.css").read_text("utf-8")
TEXT, CONTROL = 4.5, 3.0
PAIRS = [
    ("ink", "page", TEXT),
    ("ink", "surface", TEXT),
    ("ink", "sunken", TEXT),
    ("ink", "accent-soft", TEXT),
    ("muted", "page", TEXT),
    ("muted", "surface", TEXT),
    ("muted", "sunken", TEXT),
    ("muted", "accent-soft", TEXT),
    ("accent", "surface", TEXT),
    ("accent", "page", TEXT),
    ("accent", "accent-soft", TEXT),
    ("accent-ink", "accent", TEXT),
    ("good", "good-soft", TEXT),
    ("warn", "warn-soft", TEXT),
    ("bad", "bad-soft", TEXT),
    ("bad", "surface", TEXT),
    ("line-strong", "surface", CONTROL),
    ("line-strong", "sunken", CONTROL),
    ("part-1", "surface", CONTROL),
]


def theme(selector: str) -> dict[str, str]:
    block = SHEET[SHEET.index(selector) :]
    return dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", block[: block.index("}")]))


LIGHT = theme(":root {")
DARK = theme(':root:not([data-theme="light"]) {')


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [it / 12.92 if it <= 0.04045 else ((it + 0.055) / 1.055) ** 2.4 for it in parts]
    return sum(w * it for w, it in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


@pytest.mark.parametrize("colours", [LIGHT, DARK], ids=["light", "dark"])
@pytest.mark.parametrize(("front", "back", "least"), PAIRS)
def test_colors_have_enough_contrast(
    colours: dict[str, str], front: str, back: str, least: float
) -> None:
    light, dark = sorted((luminance(colours[front]), luminance(colours[back])), reverse=True)
    assert (light + 0.05) / (dark + 0.05) >= least


def test_the_chosen_dark_theme_equals_the_system_one() -> None:
    assert theme(':root[data-theme="dark"] {') == DARK
    assert DARK.keys() == LIGHT.keys()


def test_the_style_sheet_loads_nothing_else() -> None:
    assert "http" not in SHEET
    assert "@import" not in SHEET
    assert "url(" not in SHEET
