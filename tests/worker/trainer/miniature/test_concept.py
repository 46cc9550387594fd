"""What trainings of the miniature models teach them, read back by image analysis."""

import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from safetensors.torch import load_file

from benchmarks.miniature import Miniature
from tasks.events import CheckpointSaved, Event
from tasks.jobs.job import parse_job
from tests.worker.trainer.miniature.drawings import (
    CONCEPT,
    SEEDS,
    concepts_in,
    drawings_of,
    drawn_concept,
    fast_miniature,
    overlap_of,
    stored,
)
from tests.worker.trainer.runs import (
    CACHED,
    Trained,
    TrainerProcess,
    request_of,
    run_cache,
    run_train,
    sdxl_config_of,
)
from worker.local.demo import Family, prepare_demo
from worker.miniature.dataset import dataset_captions
from worker.miniature.images import (
    FLUX_FOLDER,
    SDXL_FOLDER,
    Caption,
    held_out_captions,
)
from worker.miniature.reading import read

pytestmark = [
    pytest.mark.filterwarnings("ignore"),  # of diffusers, while it loads
    # Each trains for up to 250 steps.
    pytest.mark.timeout(300),
]
FOLDERS: dict[Family, Path] = {"flux": FLUX_FOLDER, "sdxl": SDXL_FOLDER}


@dataclass
class Learned:
    """A run of the demo's job without samples, to its end."""

    config: dict[str, Any]
    run: Trained


@pytest.fixture(scope="module", params=FOLDERS)
def family(request: pytest.FixtureRequest) -> Family:
    chosen: Family = request.param
    return chosen


@pytest.fixture(scope="module")
def miniature(family: Family) -> Miniature:
    return fast_miniature(FOLDERS[family])


@pytest.fixture(scope="module")
def learned(family: Family, tmp_path_factory: pytest.TempPathFactory) -> Learned:
    folder = tmp_path_factory.mktemp("concept")
    training = prepare_demo(folder / "demo", family)["training"]
    training |= {"validation_prompts": [], "validate_at_start": False, "save_every_n_steps": 50}
    del training["validate_every_n_steps"], training["num_validation_images_per_prompt"]
    data = stored(folder, drawings_of(dataset_captions()))
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


@pytest.mark.parametrize("family", ["flux"], indirect=True, scope="module")
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


def test_a_textual_inversion_finds_a_shape_that_the_model_draws(tmp_path: Path) -> None:
    word = "<moon>"
    shown = Caption("crescent", "crimson", "sky to turquoise", "on the left")
    asked = Caption("crescent", "magenta", "mint to lime", "in the centre")
    data = stored(tmp_path, drawings_of([shown] * 8))
    config = sdxl_config_of(
        "SDXL_TEXTUAL_INVERSION",
        SDXL_FOLDER,
        loader={"resolution": 128, "caption_templates": [str(shown._replace(shape="{}"))]},
        placeholder_token=word,
        initial_phrase="a",
        train_batch_size=4,
        max_train_steps=60,
        optimizer={"optimizer_type": "AdamW", "learning_rate": 5e-3},
        cache_vae_outputs=True,
    )
    run = run_train(data, config)
    miniature = fast_miniature(SDXL_FOLDER)

    def crescents() -> int:
        prompts = [str(asked._replace(shape=word))] * len(SEEDS)
        return sum(read(image).is_right(asked) for image in miniature.draw(prompts, SEEDS))

    assert crescents() <= 3
    pipeline, vectors = miniature.pipeline, load_file(run.weights)
    for name, number in (("clip_l", ""), ("clip_g", "_2")):
        pipeline.load_textual_inversion(
            vectors[name],
            token=word,
            text_encoder=getattr(pipeline, f"text_encoder{number}"),
            tokenizer=getattr(pipeline, f"tokenizer{number}"),
        )
    assert crescents() >= 8


def test_a_finetune_draws_the_concept_for_its_trigger_word(tmp_path: Path) -> None:
    data = stored(tmp_path, drawings_of(dataset_captions()))
    config = sdxl_config_of(
        "SDXL_FINETUNE",
        SDXL_FOLDER,
        loader={"resolution": 128},
        train_batch_size=4,
        max_train_steps=100,
        optimizer={"optimizer_type": "AdamW", "learning_rate": 5e-4},
        **CACHED,
    )
    run = run_train(data, config)
    miniature = fast_miniature(SDXL_FOLDER)
    miniature.pipeline.unet.load_state_dict(load_file(run.weights))
    assert concepts_in(drawn_concept(miniature, None)) >= 8
    assert sum(miniature.draws_right(held_out_captions()[:20], range(20))) >= 16
