"""Drawn images as a dataset, and how many images show the concept."""

import hashlib
import io
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from benchmarks.miniature import STEPS, Miniature
from tasks.dataset import Sample
from tasks.store import Store, image_key
from tests.worker.trainer.runs import Images, put_dataset
from worker.miniature.dataset import SAMPLE_CAPTIONS
from worker.miniature.images import CONCEPT_SHAPE, Caption, draw
from worker.miniature.reading import read, shape_overlap

CONCEPT = SAMPLE_CAPTIONS[0]
SEEDS = range(10)
Drawing = tuple[Image.Image, str]


def fast_miniature(folder: Path) -> Miniature:
    """Load a model to draw in less than half the time: in bfloat16, with half the steps."""
    return Miniature(folder, torch.bfloat16, STEPS // 2)


def drawn_concept(
    miniature: Miniature, lora: Path | None, strength: float = 1.0
) -> list[Image.Image]:
    """Draw an image of the concept for each seed."""
    miniature.use(lora, strength)
    return miniature.draw([str(CONCEPT)] * len(SEEDS), SEEDS)


def concepts_in(images: Sequence[Image.Image]) -> int:
    """Return how many images show the concept as its caption says."""
    return sum(read(image).is_right(CONCEPT) for image in images)


def overlap_of(images: Sequence[Image.Image]) -> float:
    """Return how much the images' shapes share with the concept's, on average."""
    return float(np.mean([shape_overlap(image, CONCEPT_SHAPE) for image in images]))


def stored(
    folder: Path, drawings: Sequence[Drawing], masks: Sequence[Image.Image] | None = None
) -> Images:
    """Store drawings, and masks if there are any, as a dataset."""
    store = Store(f"file://{folder}/store")

    def put(image: Image.Image) -> str:
        file = io.BytesIO()
        image.save(file, "PNG")
        digest = hashlib.sha256(file.getvalue()).hexdigest()
        store.put(image_key(digest), file.getvalue())
        return digest

    samples = [
        Sample(
            image=put(image),
            width=image.width,
            height=image.height,
            caption=caption,
            source=f"{number}.png",
            mask=None if masks is None else put(masks[number]),
        )
        for number, (image, caption) in enumerate(drawings)
    ]
    return Images(folder, store, put_dataset(store, samples))


def drawings_of(captions: Sequence[Caption], side: int = 128) -> list[Drawing]:
    """Draw an image for each caption."""
    draws = random.Random(0)
    return [(draw(caption, (side, side), draws), str(caption)) for caption in captions]
