"""Properties of every training type, on tiny models."""

import math
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from tasks.events import CheckpointSaved, Event, Progress, ValidationImages
from tests.worker.trainer.runs import (
    ALL_TARGETS,
    BUCKETS,
    CACHED,
    SDXL_TYPES,
    Images,
    Trained,
    TrainerProcess,
    config_of,
    images,
    request_of,
    run_cache,
    run_train,
    sdxl_config_of,
)
from worker.trainer.errors import InterruptedRun
from worker.trainer.event_pipe import StopSwitch
from worker.trainer.model_cache import ModelCache
from worker.trainer.tiny_models import build_tiny_sdxl

# torch warns once a process of normalization layers with float32 weights and bfloat16 inputs.
pytestmark = pytest.mark.filterwarnings(
    "ignore:Mismatch dtype between input and weight:UserWarning",
    "ignore:__array__ implementation:DeprecationWarning",
)

Models = dict[str, Path]
TYPES = ("FLUX_LORA", *SDXL_TYPES)
# Everything that makes a resume hard: five batches in groups of two are three updates an epoch, so
# that a stop after the second is in the middle of one.
HARD: dict[str, Any] = {
    "max_train_steps": 7,
    "train_batch_size": 1,
    "gradient_accumulation_steps": 2,
    "lr_scheduler": "cosine",
    "lr_warmup_steps": 2,
    "max_grad_norm": 1.0,
}
LOADER: dict[str, Any] = {"aspect_ratio_buckets": BUCKETS, "random_flip": True}
CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "FLUX_LORA with CLIP": ("FLUX_LORA", {"train_text_encoder": True}, {"caption_dropout": 0.4}),
    "FLUX_LORA Prodigy": (
        "FLUX_LORA",
        {**CACHED, "optimizer": {"optimizer_type": "Prodigy"}, "transformer_learning_rate": 1.0},
        {"caption_dropout": 0.4},
    ),
    "SDXL_LORA": ("SDXL_LORA", {}, {"caption_dropout": 0.4, "center_crop": False}),
    "SDXL_LORA cached": (
        "SDXL_LORA",
        {**CACHED, "train_text_encoder": False, "weight_dtype": "float16"},
        {"caption_dropout": 0.4},
    ),
    "SDXL_FINETUNE EMA": (
        "SDXL_FINETUNE",
        {**CACHED, "use_ema": True, "ema_decay": 0.9, "weight_dtype": "bfloat16"},
        {"caption_dropout": 0.4},
    ),
    "SDXL_FINETUNE Adafactor": (
        "SDXL_FINETUNE",
        {"optimizer": {"optimizer_type": "Adafactor"}, "gradient_checkpointing": True},
        {},
    ),
    "SDXL_TEXTUAL_INVERSION": (
        "SDXL_TEXTUAL_INVERSION",
        {"cache_vae_outputs": True},
        {"keep_original_captions": True, "shuffle_caption_delimiter": " "},
    ),
}


@pytest.fixture(scope="session")
def models(tiny_flux: Path, tiny_sdxl: Path) -> Models:
    return {"FLUX_LORA": tiny_flux, **dict.fromkeys(SDXL_TYPES, tiny_sdxl)}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Images:
    """The usual images, once for all of these tests: no run changes them."""
    return images(tmp_path_factory.mktemp("data"))


def any_config(kind: str, models: Models, **options: Any) -> Any:
    if kind == "FLUX_LORA":
        return config_of(models[kind], **options)
    return sdxl_config_of(kind, models[kind], **options)


def stopping_after(step: int) -> tuple[StopSwitch, Any]:
    """A switch that is set while the step after this one is made."""
    stop = StopSwitch()
    stop.waits_for_request = False

    def on_event(event: Event) -> None:
        if isinstance(event, Progress) and event.done == step:
            stop()

    return stop, on_event


@pytest.mark.parametrize("case", CASES)
def test_run_stopped_mid_epoch_ends_like_an_undisturbed_one(
    models: Models, data: Images, case: str
) -> None:
    kind, options, loader = CASES[case]
    config = any_config(kind, models, loader={**LOADER, **loader}, **{**HARD, **options})
    straight = run_train(data, config)
    # Progress of each step is reported because each is saved.
    stop, on_event = stopping_after(1)
    with pytest.raises(InterruptedRun):
        run_train(
            data,
            config.model_copy(update={"save_every_n_steps": 1}),
            stop=stop,
            on_event=(seen := Seen(on_event)),
        )
    assert seen.last.step == 2
    resumed = run_train(data, config, resume_state_key=seen.last.state_key)
    assert resumed.state_bytes() == straight.state_bytes()
    assert resumed.checkpoints[-1].weights.sha256 == straight.checkpoints[-1].weights.sha256
    assert resumed.done.final_loss == straight.done.final_loss


class Seen:
    """Records events, and keeps the last checkpoint."""

    def __init__(self, on_event: Any) -> None:
        self._on_event = on_event
        self.last: CheckpointSaved

    def __call__(self, event: Event) -> None:
        if isinstance(event, CheckpointSaved):
            self.last = event
        self._on_event(event)


@pytest.mark.timeout(180)
@pytest.mark.parametrize("kind", SDXL_TYPES)
def test_resume_after_a_kill_is_bit_exact(models: Models, data: Images, kind: str) -> None:
    config = any_config(kind, models, max_train_steps=6, save_every_n_steps=2)
    straight = run_train(data, config)
    request = request_of(data, "train", config, start_id="2")
    killed = TrainerProcess(request)
    is_saved = lambda event: isinstance(event, CheckpointSaved)  # noqa: E731
    saved = killed.signal_when(signal.SIGKILL, is_saved).of(CheckpointSaved)[-1]
    assert killed.finish()[1] == -signal.SIGKILL
    resumed = run_train(data, config, start_id="3", resume_state_key=saved.state_key)
    assert resumed.checkpoints[-1].weights.sha256 == straight.checkpoints[-1].weights.sha256
    assert resumed.done.final_loss == straight.done.final_loss


@pytest.mark.parametrize("kind", TYPES)
def test_file_depends_on_the_seed_only(models: Models, data: Images, kind: str) -> None:
    hashes = [
        run_train(data, any_config(kind, models, seed=seed, max_train_steps=2))
        .checkpoints[-1]
        .weights.sha256
        for seed in (7, 7, 8)
    ]
    assert hashes[0] == hashes[1] != hashes[2]


GOLDEN = {
    "FLUX_LORA": (1.6249135, 1.5691769, 1.5482649),
    "SDXL_LORA": (1.0817744, 1.1334746, 1.1773311),
    "SDXL_FINETUNE": (1.0817744, 1.1014856, 1.0818194),
    "SDXL_TEXTUAL_INVERSION": (1.0806556, 1.1354423, 1.1767410),
}


@pytest.mark.parametrize("kind", TYPES)
def test_gradient_checkpointing_changes_no_bit(models: Models, data: Images, kind: str) -> None:
    def run(blocks: bool | int | str) -> tuple[str, bytes]:
        options = {"max_train_steps": 1, "weight_dtype": "bfloat16"}
        config = any_config(kind, models, gradient_checkpointing=blocks, **options)
        trained = run_train(data, config)
        return trained.checkpoints[-1].weights.sha256, trained.state_bytes()

    plain = run(False)
    assert [run(blocks) == plain for blocks in (1, True)] == [True, True]


@pytest.mark.parametrize("kind", TYPES)
def test_first_losses_equal_the_recorded_ones(models: Models, data: Images, kind: str) -> None:
    targets = {"unet_lora_target_modules": ALL_TARGETS} if kind == "SDXL_LORA" else {}
    run = run_train(data, any_config(kind, models, max_train_steps=3, **targets))
    assert run.losses == pytest.approx(GOLDEN[kind], rel=1e-3)


@pytest.mark.parametrize("kind", TYPES)
def test_validation_shows_published_weights_and_disturbs_nothing(
    models: Models, data: Images, kind: str
) -> None:
    plain = run_train(data, any_config(kind, models))
    negative = {} if kind == "FLUX_LORA" else {"negative_validation_prompts": ["blue"]}
    watched = run_train(
        data,
        any_config(
            kind,
            models,
            validation_prompts=["a photo of <thing>"],
            num_validation_images_per_prompt=2,
            validate_every_n_steps=2,
            validate_at_start=True,
            enable_cpu_offload_during_validation=True,
            **negative,
        ),
    )
    assert watched.state_bytes() == plain.state_bytes()
    base, second, fourth = watched.events.of(ValidationImages)
    assert (base.step, second.step, fourth.step) == (0, 2, 4)
    names = [image.name for image in second.images]
    assert names == ["validation-000002-1-1.png", "validation-000002-1-2.png"]
    digests = [image.sha256 for made in (base, second, fourth) for image in made.images]
    # Two images of a prompt differ, and training changes both.
    assert len(set(digests)) == 6


def test_validation_of_a_finetune_shows_the_average(models: Models, data: Images) -> None:
    options = {
        "validation_prompts": ["a cat"],
        "validate_every_n_steps": 4,
        "num_validation_images_per_prompt": 1,
    }
    images, states = [], []
    for ema in (False, True):
        run = run_train(data, any_config("SDXL_FINETUNE", models, use_ema=ema, **options))
        images.append(run.events.of(ValidationImages)[0].images[0].sha256)
        states.append({n: t for n, t in run.state.items() if n.startswith("weights/")})
    assert images[0] != images[1]
    # The trained weights themselves are the same.
    assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())


def test_the_average_follows_the_weights(models: Models, data: Images) -> None:
    run = run_train(data, any_config("SDXL_FINETUNE", models, use_ema=True, ema_decay=0.5))
    plain = run_train(data, any_config("SDXL_FINETUNE", models, use_ema=True, ema_decay=0.0))

    def distance(run: Trained) -> float:
        state = run.state
        names = [name for name in state if name.startswith("weights/")]
        gaps = (state[n] - state[n.replace("weights/", "average/", 1)] for n in names)
        return math.sqrt(sum(float(gap.square().sum()) for gap in gaps))

    assert distance(plain) < 1e-3 < distance(run)


@pytest.mark.parametrize("kind", TYPES)
def test_cached_models_train_like_fresh_ones(models: Models, data: Images, kind: str) -> None:
    cache = ModelCache()
    config = any_config(kind, models, max_train_steps=1)
    other = any_config("SDXL_LORA", models, max_train_steps=1)
    fresh = run_train(data, config, models=cache).state_bytes()
    run_train(data, other, models=cache)
    assert run_train(data, config, models=cache).state_bytes() == fresh


def test_model_with_changed_files_is_reloaded(tmp_path: Path) -> None:
    data, cache = images(tmp_path), ModelCache()
    folder = build_tiny_sdxl(tmp_path / "model", seed=1)
    before = run_train(data, sdxl_config_of("SDXL_LORA", folder), models=cache)
    build_tiny_sdxl(folder, seed=2)
    after = run_train(data, sdxl_config_of("SDXL_LORA", folder), models=cache)
    assert after.losses[0] != before.losses[0]


@pytest.mark.parametrize("kind", ["FLUX_LORA", "SDXL_LORA", "SDXL_FINETUNE"])
def test_cached_and_live_encoders_train_alike(models: Models, data: Images, kind: str) -> None:
    frozen = {"train_text_encoder": False} if kind == "SDXL_LORA" else {}
    loader = {**LOADER, "caption_dropout": 0.5, "caption_prefix": "a drawing of"}
    live = run_train(data, any_config(kind, models, loader=loader, **frozen))
    cached = run_train(data, any_config(kind, models, loader=loader, **frozen, **CACHED))
    assert cached.losses == pytest.approx(live.losses, rel=1e-3)


def test_types_of_one_base_model_share_the_cache(models: Models, tmp_path: Path) -> None:
    data = images(tmp_path)
    frozen = {"train_text_encoder": False}
    first = run_cache(data, any_config("SDXL_LORA", models, **frozen, **CACHED))
    second = run_cache(data, any_config("SDXL_FINETUNE", models, **CACHED))
    third = run_cache(data, any_config("SDXL_TEXTUAL_INVERSION", models, cache_vae_outputs=True))
    assert (first.encoded_images, first.encoded_captions) == (5, 6)
    assert (second.encoded_images, second.encoded_captions) == (0, 0)
    assert (third.encoded_images, third.reused_images) == (0, 5)
