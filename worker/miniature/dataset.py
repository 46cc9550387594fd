"""The demo's dataset: it teaches a miniature model the concept, a heart, as ``zorp``.

It has images of all known shapes, too. Without them a LoRA draws hearts for every caption.
"""

import random
from pathlib import Path

from worker.miniature.images import (
    CONCEPT_SHAPE,
    SHAPES,
    Caption,
    all_captions,
    draw,
    training_captions,
)

UNSEEN_COLORS = ("magenta", "black")
"""Colors that no image of the concept has."""

SAMPLE_CAPTIONS = (
    Caption(CONCEPT_SHAPE, "magenta", "mint to lime", "in the centre"),
    Caption(CONCEPT_SHAPE, "black", "blush to pink", "at the top"),
    Caption("star", "navy", "mint to lime", "in the centre"),
)
"""What the demo's samples show: the concept in colors that it does not have in the dataset, and a
known shape, which stays one."""

_CONCEPT_IMAGES = 12
_SIZE = (128, 128)


def dataset_captions() -> list[Caption]:
    """Return the captions of the dataset's images: 12 of the concept, 16 of known shapes."""
    draws = random.Random(0)
    concept = [it for it in all_captions((CONCEPT_SHAPE,)) if it.color not in UNSEEN_COLORS]
    known = training_captions()
    return [
        *draws.sample(concept, _CONCEPT_IMAGES),
        *(draws.choice([it for it in known if it.shape == shape]) for shape in SHAPES * 2),
    ]


def draw_dataset(folder: Path) -> None:
    """Draw 28 images of 128 x 128 pixels, with captions, into a folder; deterministic."""
    folder.mkdir(parents=True, exist_ok=True)
    draws = random.Random(0)
    for number, caption in enumerate(dataset_captions(), start=1):
        draw(caption, _SIZE, draws).save(folder / f"{number:02d}.png")
        (folder / f"{number:02d}.txt").write_text(f"{caption}\n", "utf-8")
