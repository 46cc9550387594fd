from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel
from diffusers.pipelines.flux.pipeline_flux import FluxPipeline

from tests.worker.trainer.runs import Images, config_of, read_tensors, run_train
from worker.trainer.export.lora_file import peft_tensors
from worker.trainer.flux.export import kohya_tensors, write_lora
from worker.trainer.flux.lora_recipe import lora_regex
from worker.trainer.rng import StatelessRng

FORMATS = ("kohya", "invoke_peft")


def pipeline_of(folder: Path, **components: Any) -> Any:
    pipeline: Any = FluxPipeline.from_pretrained(folder, **components)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def image_of(pipeline: Any) -> Any:
    return pipeline(
        "a photo of a cat",
        height=64,
        width=64,
        num_inference_steps=2,
        max_sequence_length=32,
        generator=torch.Generator().manual_seed(0),
        output_type="np",
    ).images[0]


def images_with(pipeline: Any, paths: dict[str, Path]) -> dict[str, Any]:
    """Return the base model's image and that of each LoRA."""
    images = {"base": image_of(pipeline)}
    for name, path in paths.items():
        pipeline.load_lora_weights(str(path.parent), weight_name=path.name)
        images[name] = image_of(pipeline)
        pipeline.unload_lora_weights()
    return images


def kohya_deltas(path: Path) -> dict[str, torch.Tensor]:
    tensors, _ = read_tensors(path)
    deltas = {}
    for name in {key.split(".")[0] for key in tensors}:
        down, up = tensors[f"{name}.lora_down.weight"], tensors[f"{name}.lora_up.weight"]
        deltas[name] = up @ down * (tensors[f"{name}.alpha"] / len(down))
    return deltas


def peft_deltas(path: Path) -> dict[str, torch.Tensor]:
    tensors, _ = read_tensors(path)
    names = {key.split(".lora_")[0] for key in tensors}
    return {
        name.removeprefix("transformer."): tensors[f"{name}.lora_B.weight"]
        @ tensors[f"{name}.lora_A.weight"]
        for name in names
    }


def assert_same_change(kohya: Path, peft: Path) -> None:
    """The fused layers of one file hold the layers of the other, and nothing more."""
    fused, parts = kohya_deltas(kohya), peft_deltas(peft)
    used = set()
    for name, delta in fused.items():
        kind, number, layer = (
            name.removeprefix("lora_unet_").split("_blocks_")[0],
            *(name.split("_blocks_")[1].split("_", 1)),
        )
        block = f"{'single_' if kind == 'single' else ''}transformer_blocks.{number}."
        rows = 0
        for part in PARTS[layer]:
            width = delta.shape[0] if len(PARTS[layer]) == 1 else delta.shape[1]
            height = width * 4 if part == "proj_mlp" else width
            piece = delta[rows : rows + height]
            rows += height
            expected = parts.get(block + part, torch.zeros_like(piece))
            used.add(block + part)
            torch.testing.assert_close(piece, expected, rtol=1e-5, atol=1e-9)
        assert rows == delta.shape[0]
    assert set(parts) <= used
    assert any(delta.abs().max() > 0 for delta in parts.values())


PARTS = {
    "img_attn_qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "txt_attn_qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "img_attn_proj": ("attn.to_out.0",),
    "txt_attn_proj": ("attn.to_add_out",),
    "img_mlp_0": ("ff.net.0.proj",),
    "img_mlp_2": ("ff.net.2",),
    "txt_mlp_0": ("ff_context.net.0.proj",),
    "txt_mlp_2": ("ff_context.net.2",),
    "linear1": ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"),
    "linear2": ("proj_out",),
}


def test_both_formats_make_the_same_new_image(double_flux: Path, data: Images) -> None:
    paths = {
        form: run_train(
            data,
            config_of(double_flux, max_train_steps=12, lora_checkpoint_format=form, lora_scale=0.5),
            start_id=str(number),
        ).weights
        for number, form in enumerate(FORMATS, start=1)
    }
    images = images_with(pipeline_of(double_flux), paths)
    assert np.array_equal(images["kohya"], images["invoke_peft"])
    assert np.abs(images["kohya"] - images["base"]).mean() > 1e-3
    assert_same_change(paths["kohya"], paths["invoke_peft"])


@pytest.mark.timeout(120)
def test_formats_of_full_width_single_blocks_are_equal(double_flux: Path, tmp_path: Path) -> None:
    # diffusers splits linear1 at 3072 whatever the model's width: it reads our file of a model as
    # wide as FLUX only. One block is enough.
    torch.manual_seed(0)
    with torch.device("meta"):
        transformer = FluxTransformer2DModel(
            num_layers=0,
            num_single_layers=1,
            joint_attention_dim=32,
            pooled_projection_dim=32,
            guidance_embeds=True,
        )
    transformer.to_empty(device="cpu")
    for parameter in transformer.parameters():
        parameter.data.normal_(std=0.02)
    weights = random_lora(3072)
    paths = {}
    for form in FORMATS:
        paths[form] = tmp_path / f"{form}.safetensors"
        config = config_of(double_flux, lora_checkpoint_format=form, lora_scale=2.0)
        write_lora(paths[form], weights, config, {}, guided=True)
    images = images_with(pipeline_of(double_flux, transformer=transformer), paths)
    assert np.array_equal(images["kohya"], images["invoke_peft"])
    assert np.abs(images["kohya"] - images["base"]).mean() > 1e-3


def random_lora(width: int) -> dict[str, torch.Tensor]:
    block = "transformer.single_transformer_blocks.0"
    shapes = {
        "attn.to_q": (width, width),
        "attn.to_k": (width, width),
        "attn.to_v": (width, width),
        "proj_mlp": (width, width * 4),
        "proj_out": (width * 5, width),
    }
    draws, weights = StatelessRng(0), {}
    for layer, (fan_in, fan_out) in shapes.items():
        weights[f"{block}.{layer}.lora_A"] = draws.normal((4, fan_in), "a", layer) * 0.02
        weights[f"{block}.{layer}.lora_B"] = draws.normal((fan_out, 4), "b", layer) * 0.02
    return weights


@pytest.mark.parametrize(
    "targets",
    [
        ("to_q",),
        ("proj_mlp",),
        ("attn.to_k", "attn.add_v_proj", "ff.net.2"),
        ("to_q", "to_k", "to_v", "proj_mlp", "proj_out"),
    ],
)
@pytest.mark.parametrize("scale", [1.0, 0.3])
def test_both_formats_hold_the_same_change(
    tiny_flux: Path, data: Images, targets: tuple[str, ...], scale: float
) -> None:
    paths = [
        run_train(
            data,
            config_of(
                tiny_flux,
                max_train_steps=2,
                flux_lora_target_modules=targets,
                lora_checkpoint_format=form,
                lora_scale=scale,
                lora_rank_dim=3,
            ),
            start_id=str(number),
        ).weights
        for number, form in enumerate(FORMATS, start=1)
    ]
    assert_same_change(*paths)


def test_kohya_names_and_shapes_are_those_of_the_original_model() -> None:
    tensors = kohya_tensors(random_lora(32), alpha=8.0)
    name = "lora_unet_single_blocks_0_linear1"
    assert tensors[f"{name}.lora_down.weight"].shape == (16, 32)
    assert tensors[f"{name}.lora_up.weight"].shape == (32 * 7, 16)
    assert tensors[f"{name}.alpha"] == 32.0
    assert tensors["lora_unet_single_blocks_0_linear2.alpha"] == 8.0
    assert len(tensors) == 6


def test_peft_format_needs_no_alpha() -> None:
    weights = random_lora(32)
    tensors = peft_tensors(weights, alpha=2.0)
    block = "transformer.single_transformer_blocks.0.proj_out"
    expected = weights[f"{block}.lora_B"] @ weights[f"{block}.lora_A"] * 0.5
    found = tensors[f"{block}.lora_B.weight"] @ tensors[f"{block}.lora_A.weight"]
    torch.testing.assert_close(found, expected)


def test_targets_match_layers_of_their_blocks_only(tiny_flux: Path, data: Images) -> None:
    trained = run_train(data, config_of(tiny_flux, max_train_steps=1))
    layers = {
        key.removeprefix("weights/transformer.").rpartition(".")[0]
        for key in trained.state
        if key.startswith("weights/")
    }
    doubles = {layer for layer in layers if layer.startswith("transformer_blocks.0.")}
    singles = {layer for layer in layers if layer.startswith("single_transformer_blocks.0.")}
    assert layers == doubles | singles
    assert len(doubles) == 12
    assert {layer.removeprefix("single_transformer_blocks.0.") for layer in singles} == {
        "attn.to_q",
        "attn.to_k",
        "attn.to_v",
        "proj_mlp",
        "proj_out",
    }


def test_lora_file_has_metadata_and_is_readable(tiny_flux: Path, data: Images) -> None:
    path = run_train(data, config_of(tiny_flux, max_train_steps=1)).weights
    _, metadata = read_tensors(path)
    assert metadata["ss_base_model_version"] == "flux1"
    assert metadata["ss_network_dim"] == "4"
    assert metadata["modelspec.architecture"] == "flux-1-dev/lora"
    assert path.stat().st_mode & 0o777 == 0o644


def test_targets_become_one_regex_over_blocks(tiny_flux: Path) -> None:
    only_double = config_of(tiny_flux, flux_lora_target_modules=("ff.net.2",))
    assert lora_regex(only_double) == r"transformer_blocks\.\d+\.(?:ff\.net\.2)"
