"""Each option changes what it should, and nothing else; see ``test_loop`` for FLUX's."""

import math
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.pipelines.flux.pipeline_flux import FluxPipeline
from PIL import Image

from tasks.store import image_key
from tests.worker.trainer.runs import (
    CACHED,
    Images,
    Trained,
    config_of,
    images,
    put_dataset,
    read_tensors,
    run_train,
    sdxl_config_of,
)
from worker.trainer.errors import PlaceholderError, TargetError
from worker.trainer.flux.models import take_models
from worker.trainer.lora import Lora
from worker.trainer.model_cache import ModelCache
from worker.trainer.rng import StatelessRng

# torch warns once a process of normalization layers with float32 weights and bfloat16 inputs.
pytestmark = pytest.mark.filterwarnings(
    "ignore:Mismatch dtype between input and weight:UserWarning"
)


Plain = Callable[..., Trained]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Images:
    """The usual images, once for all of these tests: no run changes them."""
    return images(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def plain(tiny_sdxl: Path, data: Images) -> Plain:
    """Runs without any option, each kind made once."""

    @cache
    def run(kind: str = "SDXL_LORA", steps: int = 4) -> Trained:
        return run_train(data, sdxl_config_of(kind, tiny_sdxl, max_train_steps=steps))

    return run


def weights(run: Trained) -> dict[str, torch.Tensor]:
    return {name: t for name, t in run.state.items() if name.startswith("weights/")}


def models_of(run: Trained) -> set[str]:
    return {name.removeprefix("weights/").partition(".")[0] for name in weights(run)}


def lora(data: Images, model: Path, **options: Any) -> Trained:
    return run_train(data, sdxl_config_of("SDXL_LORA", model, **options))


@pytest.mark.parametrize(
    "options",
    [
        {"min_snr_gamma": 1.0},
        {"prediction_type": "v_prediction"},
        {"loader": {"caption_prefix": "a drawing of"}},
        {"trigger_word": "ohwx"},
        {"loader": {"caption_dropout": 1.0}},
        {"loader": {"random_flip": True}},
        {"loader": {"center_crop": False}},
        {"loader": {"resolution": [64, 96]}},
        {"weight_dtype": "bfloat16"},
        {"mixed_precision": "bf16"},
        {"mixed_precision": "fp16"},
        {"train_batch_size": 1},
        {"seed": 8},
    ],
    ids=str,
)
def test_sdxl_loss_option_changes_the_first_loss(
    tiny_sdxl: Path, data: Images, plain: Plain, options: dict[str, Any]
) -> None:
    changed = lora(data, tiny_sdxl, max_train_steps=2, **options)
    assert changed.losses != plain(steps=2).losses
    assert all(math.isfinite(loss) for loss in changed.losses)


@pytest.mark.parametrize(
    "options",
    [
        {"unet_learning_rate": 1e-2},
        {"text_encoder_learning_rate": 1e-2},
        {"max_grad_norm": 1e-6, "optimizer": {"optimizer_type": "AdamW", "epsilon": 1e-3}},
        {"lr_scheduler": "linear"},
        {"lr_scheduler": "constant_with_warmup", "lr_warmup_steps": 2},
        {"optimizer": {"optimizer_type": "AdamW", "learning_rate": 1e-3, "use_8bit": True}},
        {"optimizer": {"optimizer_type": "Prodigy"}},
        {"optimizer": {"optimizer_type": "Adafactor"}},
    ],
    ids=str,
)
def test_update_option_changes_weights_but_not_the_first_loss(
    tiny_sdxl: Path, data: Images, plain: Plain, options: dict[str, Any]
) -> None:
    changed = lora(data, tiny_sdxl, **options)
    assert changed.losses[0] == plain().losses[0]
    before, after = weights(plain()), weights(changed)
    assert before.keys() == after.keys()
    assert any(not torch.equal(tensor, after[name]) for name, tensor in before.items())


def test_learning_rate_of_a_model_moves_that_model(
    tiny_sdxl: Path, data: Images, plain: Plain
) -> None:
    other = lora(data, tiny_sdxl, max_train_steps=1, text_encoder_learning_rate=1e-2)
    before, after = weights(plain(steps=1)), weights(other)
    moved = {name for name, tensor in before.items() if not torch.equal(tensor, after[name])}
    assert {name.removeprefix("weights/").partition(".")[0] for name in moved} == {
        "text_encoder",
        "text_encoder_2",
    }


@pytest.mark.parametrize(
    ("options", "trained"),
    [
        ({}, {"unet", "text_encoder", "text_encoder_2"}),
        ({"train_text_encoder": False}, {"unet"}),
        ({"train_unet": False}, {"text_encoder", "text_encoder_2"}),
        (
            {"train_unet": False, "gradient_checkpointing": True},
            {"text_encoder", "text_encoder_2"},
        ),
    ],
)
def test_only_configured_models_are_trained(
    tiny_sdxl: Path, data: Images, options: dict[str, Any], trained: set[str]
) -> None:
    run = lora(data, tiny_sdxl, **options)
    assert models_of(run) == trained
    prefixes = {"unet": "lora_unet", "text_encoder": "lora_te1", "text_encoder_2": "lora_te2"}
    found = {name.partition("_down")[0][:8] for name in read_tensors(run.weights)[0]}
    assert found == {prefixes[name][:8] for name in trained}
    last = [t for name, t in weights(run).items() if name.endswith("lora_B")]
    assert sum(float(tensor.abs().sum()) for tensor in last) > 0


def test_lora_targets_and_rank_shape_the_lora(tiny_sdxl: Path, data: Images) -> None:
    run = lora(
        data,
        tiny_sdxl,
        max_train_steps=1,
        lora_rank_dim=3,
        unet_lora_target_modules=["conv_shortcut"],
        text_encoder_lora_target_modules=["fc1"],
    )
    for name, tensor in weights(run).items():
        assert name.rpartition(".lora_")[0].endswith(("conv_shortcut", "fc1"))
        assert tensor.shape[0 if name.endswith("lora_A") else 1] == 3
    assert read_tensors(run.weights)[1]["ss_network_dim"] == "3"


def test_target_without_a_layer_is_refused(tiny_flux: Path) -> None:
    models = take_models(config_of(tiny_flux), torch.device("cpu"), ModelCache())
    with pytest.raises(TargetError, match="no layer of the transformer: conv_shortcut"):
        Lora().add(models.denoiser, "transformer", ["to_q", "conv_shortcut"], 4, 4, StatelessRng(0))


@pytest.mark.parametrize("kind", ["SDXL_LORA", "SDXL_FINETUNE", "SDXL_TEXTUAL_INVERSION"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_trains_finite_float32_weights(
    tiny_sdxl: Path, data: Images, plain: Plain, kind: str, dtype: str
) -> None:
    run = run_train(data, sdxl_config_of(kind, tiny_sdxl, weight_dtype=dtype))
    assert all(tensor.dtype == torch.float32 for tensor in weights(run).values())
    assert all(tensor.isfinite().all() for tensor in weights(run).values())
    assert run.losses == pytest.approx(plain(kind).losses, rel=0.05)


def test_dropped_caption_is_the_blank_one(tiny_sdxl: Path, data: Images) -> None:
    blank = data.dataset.model_copy(
        update={
            "samples": tuple(
                sample.model_copy(update={"caption": ""}) for sample in data.dataset.samples
            )
        }
    )
    bare = Images(data.folder, data.store, put_dataset(data.store, blank.samples))
    frozen = {"train_text_encoder": False}
    for cached in ({}, CACHED):
        options = {**frozen, **cached, "max_train_steps": 1}
        dropped = lora(data, tiny_sdxl, loader={"caption_dropout": 1.0}, **options)
        assert dropped.losses == lora(bare, tiny_sdxl, **options).losses


@pytest.mark.parametrize("kind", ["FLUX_LORA", "SDXL_FINETUNE"])
@pytest.mark.parametrize("cached", [False, True])
def test_masks_weight_the_loss_if_used(
    tiny_flux: Path, tiny_sdxl: Path, data: Images, kind: str, cached: bool
) -> None:
    samples = []
    for sample in data.dataset.samples:
        mask = Image.new("L", sample.size, 0)
        mask.paste(255, (0, 0, sample.width // 2, sample.height))
        path = data.folder / "mask.png"
        mask.save(path)
        key = f"mask-{sample.width}x{sample.height}"
        data.store.put(image_key(key), path)
        samples.append(sample.model_copy(update={"mask": key}))
    masked = Images(data.folder, data.store, put_dataset(data.store, samples))
    jsonl = {"dataset": {"type": "IMAGE_CAPTION_JSONL_DATASET", "jsonl_path": "/unused"}}

    def losses(images: Images, use: bool) -> list[float]:
        options: dict[str, Any] = {
            "use_masks": use,
            "cache_vae_outputs": cached,
            "max_train_steps": 1,
            "loader": {**jsonl, "random_flip": True},
        }
        make = config_of if kind == "FLUX_LORA" else sdxl_config_of
        model = (tiny_flux,) if kind == "FLUX_LORA" else (kind, tiny_sdxl)
        return run_train(images, make(*model, **options)).losses

    plain = losses(masked, use=False)
    # Masks change nothing without use_masks, and use_masks nothing without masks.
    assert losses(data, use=True) == pytest.approx(losses(data, use=False), rel=1e-6)
    assert 0.2 * plain[0] < losses(masked, use=True)[0] < 0.8 * plain[0]


@pytest.mark.parametrize(
    "options",
    [
        {"caption_preset": "style", "caption_templates": None},
        {"caption_templates": ["{} drawing"]},
        {"keep_original_captions": True},
        {"keep_original_captions": True, "shuffle_caption_delimiter": " "},
    ],
    ids=str,
)
def test_template_option_changes_the_captions_of_a_word(
    tiny_sdxl: Path, data: Images, plain: Plain, options: dict[str, Any]
) -> None:
    kind = "SDXL_TEXTUAL_INVERSION"
    other = run_train(data, sdxl_config_of(kind, tiny_sdxl, loader=options, max_train_steps=2))
    assert other.losses != plain(kind, 2).losses


def test_word_starts_from_the_configured_embedding(tiny_sdxl: Path, data: Images) -> None:
    still = {"optimizer": {"optimizer_type": "AdamW", "learning_rate": 1e-12}, "max_train_steps": 1}

    def rows(**options: Any) -> dict[str, torch.Tensor]:
        config = sdxl_config_of("SDXL_TEXTUAL_INVERSION", tiny_sdxl, **still, **options)
        return read_tensors(run_train(data, config).weights)[0]

    phrase = rows(initial_phrase="red cat")
    token = rows(initial_phrase=None, initializer_token="cat", num_vectors=3)
    for key in ("clip_l", "clip_g"):
        assert phrase[key].shape[0] == 2
        assert token[key].shape[0] == 3
        for row in token[key]:
            torch.testing.assert_close(row, phrase[key][1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"placeholder_token": "a</w>"}, "has 'a</w>' already"),
        ({"initial_phrase": None, "initializer_token": "zebra"}, "is 5 tokens"),
    ],
)
def test_unusable_word_is_refused(
    tiny_sdxl: Path, data: Images, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(PlaceholderError, match=message):
        run_train(data, sdxl_config_of("SDXL_TEXTUAL_INVERSION", tiny_sdxl, **options))


def test_only_the_new_rows_of_a_word_are_trained(tiny_sdxl: Path, data: Images) -> None:
    run = run_train(data, sdxl_config_of("SDXL_TEXTUAL_INVERSION", tiny_sdxl))
    assert set(weights(run)) == {
        "weights/text_encoder.placeholder",
        "weights/text_encoder_2.placeholder",
    }


def flux(data: Images, model: Path, **options: Any) -> Trained:
    return run_train(data, config_of(model, **options))


def test_diffusers_reads_a_lora_of_clip(double_flux: Path, data: Images) -> None:
    run = flux(data, double_flux, train_text_encoder=True, text_encoder_learning_rate=1e-2)
    assert models_of(run) == {"transformer", "text_encoder"}
    pipeline: Any = FluxPipeline.from_pretrained(double_flux)
    before = pipeline.encode_prompt("a red cat", max_sequence_length=32)[1]
    pipeline.load_lora_weights(str(run.weights))
    after = pipeline.encode_prompt("a red cat", max_sequence_length=32)[1]
    assert not torch.equal(before, after)
    only = flux(data, double_flux, train_text_encoder=True, train_transformer=False)
    assert models_of(only) == {"text_encoder"}
    few = flux(
        data,
        double_flux,
        train_text_encoder=True,
        train_transformer=False,
        text_encoder_lora_target_modules=["fc2"],
        max_train_steps=1,
    )
    assert all(".mlp.fc2." in name for name in weights(few))


def test_both_formats_hold_the_same_change_of_clip(double_flux: Path, data: Images) -> None:
    states = []
    for form in ("kohya", "invoke_peft"):
        run = flux(data, double_flux, train_text_encoder=True, lora_checkpoint_format=form)
        pipeline: Any = FluxPipeline.from_pretrained(double_flux)
        pipeline.load_lora_weights(str(run.weights))
        states.append(pipeline.encode_prompt("a red cat", max_sequence_length=32)[1])
    torch.testing.assert_close(*states)


@pytest.mark.parametrize(
    "options",
    [
        {"timestep_sampler": "resolution_shift"},
        {"loader": {"caption_dropout": 1.0}},
        {"quantization": "nf4"},
        {"clip_tokenizer_max_length": 3},
        {"t5_tokenizer_max_length": 3},
    ],
    ids=str,
)
def test_flux_loss_option_changes_the_first_loss(
    tiny_flux: Path, data: Images, options: dict[str, Any]
) -> None:
    plain = flux(data, tiny_flux, max_train_steps=2)
    changed = flux(data, tiny_flux, max_train_steps=2, **options)
    assert changed.losses[:2] != plain.losses[:2]
