"""What options of a FLUX LoRA change in what it draws, read back by image analysis."""

import itertools
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from benchmarks.miniature import STEPS, Miniature
from tests.worker.trainer.miniature.drawings import SEEDS, drawings_of, stored
from tests.worker.trainer.runs import CACHED, Images, config_of, run_train
from worker.miniature.dataset import dataset_captions
from worker.miniature.images import (
    BACKGROUNDS,
    COLORS,
    CONCEPT_SHAPE,
    FLUX_FOLDER,
    SHAPES,
    Caption,
    draw,
)
from worker.miniature.reading import read

pytestmark = [
    pytest.mark.filterwarnings("ignore"),  # of diffusers, while it loads
    pytest.mark.timeout(300),
]
SIDE = 64
"""Pixels of the images, which train faster than the demo's."""


@pytest.fixture(scope="module")
def miniature() -> Miniature:
    return Miniature(FLUX_FOLDER, steps=STEPS // 2)


def learned_from(data: Images, *, loader: Any = None, **options: Any) -> Path:
    """Train a LoRA, for 60 steps if not told otherwise, and return its file."""
    values = CACHED | {
        "weight_dtype": "bfloat16",
        "lora_rank_dim": 16,
        "train_batch_size": 4,
        "transformer_learning_rate": 2e-3,
        "lr_scheduler": "cosine",
        "max_train_steps": 60,
    }
    loader = {"resolution": SIDE, **(loader or {})}
    config = config_of(FLUX_FOLDER, loader=loader, **values | options)
    return run_train(data, config).weights


def test_flips_move_shapes_to_the_other_side(miniature: Miniature, tmp_path: Path) -> None:
    draws = random.Random(0)
    words = zip(COLORS, itertools.cycle(BACKGROUNDS))
    captions = [Caption(CONCEPT_SHAPE, color, field, "on the left") for color, field in words]
    # No caption says where the shape is.
    images = [
        (draw(it, (SIDE, SIDE), draws), str(Caption(CONCEPT_SHAPE, it.color))) for it in captions
    ]
    data = stored(tmp_path, images)

    def on_the_left(*, random_flip: bool) -> int:
        miniature.use(learned_from(data, loader={"random_flip": random_flip}))
        prompts = [str(Caption(CONCEPT_SHAPE, "crimson"))] * len(SEEDS)
        found = miniature.draw(prompts, SEEDS, SIDE)
        return sum(read(image).caption.place == "on the left" for image in found)

    assert on_the_left(random_flip=False) >= 9
    assert on_the_left(random_flip=True) <= 5


def test_what_masks_leave_out_is_not_learned(miniature: Miniature, tmp_path: Path) -> None:
    corner = (SIDE - 16, SIDE - 16, SIDE, SIDE)
    captions = [
        Caption(shape, color, field, "on the left")
        for shape, color, field in zip(SHAPES, COLORS, itertools.cycle(BACKGROUNDS))
    ]
    images = drawings_of(captions, SIDE)
    mask = Image.new("L", (SIDE, SIDE), 255)
    ImageDraw.Draw(mask).rectangle(corner, fill=0)
    for image, _ in images:
        ImageDraw.Draw(image).rectangle(corner, fill="black")
    data = stored(tmp_path, images, [mask] * len(images))
    masked = {"dataset": {"type": "IMAGE_CAPTION_JSONL_DATASET", "jsonl_path": "/unused.jsonl"}}

    def dark_corners(*, use_masks: bool) -> int:
        miniature.use(learned_from(data, use_masks=use_masks, loader=masked, max_train_steps=100))
        found = miniature.draw([caption for _, caption in images], range(8), SIDE)
        lights = [np.asarray(it.convert("L"))[SIDE - 10 :, SIDE - 10 :].mean() for it in found]
        return sum(light < 80 for light in lights)

    assert dark_corners(use_masks=False) >= 6
    assert dark_corners(use_masks=True) == 0


def test_caption_dropout_teaches_images_without_captions(
    miniature: Miniature, tmp_path: Path
) -> None:
    images = drawings_of(dataset_captions(), SIDE)
    data = stored(tmp_path, images)

    def loss_without_captions(**loader: Any) -> float:
        miniature.use(learned_from(data, loader=loader))
        return miniature.flux_loss([image for image, _ in images], [""] * len(images), 0.8)

    assert loss_without_captions(caption_dropout=0.5) < 0.9 * loss_without_captions()


def test_timestep_options_decide_which_noise_levels_are_learned(
    miniature: Miniature, tmp_path: Path
) -> None:
    images = drawings_of(dataset_captions(), SIDE)
    data = stored(tmp_path, images)
    columns = [image for image, _ in images], [caption for _, caption in images]

    def losses(**options: Any) -> tuple[float, float]:
        """Return the losses at little noise and at much."""
        miniature.use(learned_from(data, **options))
        low, high = (miniature.flux_loss(*columns, sigma) for sigma in (0.1, 0.9))
        return low, high

    evenly = losses(timestep_sampler="uniform")
    noisy = losses(discrete_flow_shift=10.0)
    clean = losses(discrete_flow_shift=0.1)
    assert clean[0] < evenly[0] < noisy[0]
    assert noisy[1] < evenly[1] < clean[1]
    # A narrow draw around 0.5 has neither.
    middle = losses(discrete_flow_shift=1.0, sigmoid_scale=0.1)
    assert middle[0] > evenly[0]
    assert middle[1] > evenly[1]
