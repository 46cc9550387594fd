"""What LoRAs of the miniature FLUX draw, read back by image analysis."""

import hashlib
import io
import itertools
import random
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from benchmarks.miniature import Miniature
from tasks.dataset import Sample
from tasks.events import CheckpointSaved, Event
from tasks.jobs.job import parse_job
from tasks.store import Store, image_key
from tests.worker.trainer.runs import (
    CACHED,
    Images,
    Trained,
    TrainerProcess,
    config_of,
    put_dataset,
    request_of,
    run_cache,
    run_train,
)
from worker.local.demo import prepare_demo
from worker.miniature.dataset import SAMPLE_CAPTIONS, dataset_captions
from worker.miniature.images import (
    BACKGROUNDS,
    COLORS,
    CONCEPT_SHAPE,
    FOLDER,
    SHAPES,
    Caption,
    draw,
    held_out_captions,
)
from worker.miniature.reading import read, shape_overlap

pytestmark = [
    pytest.mark.filterwarnings("ignore"),  # of diffusers, while it loads
    # Each trains for up to 250 steps.
    pytest.mark.timeout(300),
]
CONCEPT = SAMPLE_CAPTIONS[0]
SEEDS = range(10)
SIDE = 64
"""Pixels of the images of tests of one option, which train faster than the demo's."""
Drawing = tuple[Image.Image, str]


def drawn_concept(
    miniature: Miniature, lora: Path | None, strength: float = 1.0
) -> list[Image.Image]:
    miniature.use(lora, strength)
    return miniature.draw([str(CONCEPT)] * len(SEEDS), SEEDS)


def concepts_in(images: Sequence[Image.Image]) -> int:
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


def drawings_of(captions: Sequence[Caption], side: int) -> list[Drawing]:
    draws = random.Random(0)
    return [(draw(caption, (side, side), draws), str(caption)) for caption in captions]


@dataclass
class Learned:
    """A run of the demo's job without samples, to its end."""

    config: dict[str, Any]
    run: Trained


@pytest.fixture(scope="module")
def miniature() -> Miniature:
    return Miniature()


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> Learned:
    folder = tmp_path_factory.mktemp("concept")
    training = prepare_demo(folder / "demo")["training"]
    training |= {"validation_prompts": [], "validate_at_start": False, "save_every_n_steps": 50}
    del training["validate_every_n_steps"], training["num_validation_images_per_prompt"]
    data = stored(folder, drawings_of(dataset_captions(), 128))
    return Learned(training, run_train(data, parse_job({"training": training}).training))


@pytest.fixture(scope="module")
def concept(miniature: Miniature, learned: Learned) -> list[Image.Image]:
    """What the LoRA draws for its trigger word."""
    return drawn_concept(miniature, learned.run.weights)


def test_a_lora_draws_the_concept_for_its_trigger_word(
    miniature: Miniature, learned: Learned, concept: list[Image.Image]
) -> None:
    assert concepts_in(concept) >= 8
    base = drawn_concept(miniature, None)
    assert concepts_in(base) <= 1
    # The base draws another shape, where and as the caption says.
    assert sum(read(image).caption[1:] == CONCEPT[1:] for image in base) >= 7
    half = drawn_concept(miniature, learned.run.weights, 0.5)
    assert concepts_in(base) <= concepts_in(half) < concepts_in(concept)
    assert overlap_of(base) < overlap_of(half) < overlap_of(concept)


def test_a_lora_draws_other_captions_as_before(miniature: Miniature, learned: Learned) -> None:
    miniature.use(learned.run.weights)
    assert sum(miniature.draws_right(held_out_captions()[:20], range(20))) >= 16


def test_a_killed_run_draws_the_same_images_in_the_other_form(
    miniature: Miniature, learned: Learned, concept: list[Image.Image]
) -> None:
    run = learned.run
    training = learned.config | {"lora_checkpoint_format": "invoke_peft"}
    config = parse_job({"training": training}).training
    index = run_cache(run.data, config).index_key
    fields = {"cache_index_key": index, "resume_state_key": run.checkpoints[-3].state_key}
    killed = TrainerProcess(request_of(run.data, "train", config, start_id="killed", **fields))
    saved = killed.signal_when(signal.SIGKILL, _is_checkpoint).of(CheckpointSaved)[-1]
    assert killed.finish()[1] == -signal.SIGKILL
    assert saved.step == run.checkpoints[-2].step
    resumed = run_train(run.data, config, resume_state_key=saved.state_key)
    images = drawn_concept(miniature, resumed.weights)
    assert [image.tobytes() for image in images] == [image.tobytes() for image in concept]


def _is_checkpoint(event: Event) -> bool:
    return isinstance(event, CheckpointSaved)


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
    config = config_of(FOLDER, loader={"resolution": SIDE, **(loader or {})}, **values | options)
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
        return miniature.loss([image for image, _ in images], [""] * len(images), 0.8)

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
        low, high = (miniature.loss(*columns, sigma) for sigma in (0.1, 0.9))
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
