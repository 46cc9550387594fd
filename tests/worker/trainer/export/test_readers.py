"""Files of real models' layers hold what their readers' rules ask for; no weights are needed."""

import itertools
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tasks.jobs.flux_lora import BLOCK_TARGETS
from tasks.jobs.job import parse_job
from tasks.jobs.sdxl import UNET_TARGETS
from tests.worker.trainer.export import readers
from worker.trainer.export.lora_file import diffusers_old_tensors, kohya_tensors, peft_tensors
from worker.trainer.flux import export as flux_export
from worker.trainer.sdxl.export import KOHYA_PREFIXES
from worker.trainer.sdxl.single_file import original_layers

RANK, ALPHA = 2, 3.0
SDXL_UNET = readers.sdxl_unet()
SDXL = {
    **{("unet", path): shape for path, (_, shape) in SDXL_UNET.items()},
    **{("text_encoder", path): shape for path, shape in readers.clip_layers(12, 768).items()},
    **{("text_encoder_2", path): shape for path, shape in readers.clip_layers(32, 1280).items()},
}
FLUX = {
    **{("transformer", path): shape for path, shape in readers.flux_layers().items()},
    **{("text_encoder", path): shape for path, shape in readers.clip_layers(12, 768).items()},
}
_CLIP_TARGETS = ("fc1", "fc2", "q_proj", "k_proj", "v_proj", "out_proj")


def lora_of(
    layers: dict[tuple[str, str], tuple[int, ...]], targets: tuple[str, ...], *, clip: bool = False
) -> dict[str, torch.Tensor]:
    """Return the weights of a LoRA on the layers whose paths end so, without memory for them."""
    weights = {}
    for (model, path), (out, fan_in, *kernel) in layers.items():
        ends = _CLIP_TARGETS * clip if model.startswith("text_encoder") else targets
        if any(f".{path}".endswith(f".{end}") for end in ends):
            down, up = (RANK, fan_in, *kernel), (out, RANK, *(1 for _ in kernel))
            for matrix, shape in (("A", down), ("B", up)):
                weights[f"{model}.{path}.lora_{matrix}"] = torch.empty(shape, device="meta")
    return weights


def named_unet() -> Any:
    """Return what has the names of SDXL's UNet, and no weights."""
    names = [(f"{path}.weight", None) for path in SDXL_UNET]
    return SimpleNamespace(named_parameters=lambda: names)


def original_names() -> dict[str, str]:
    """Return what the project takes for the original names of SDXL's layers."""
    return original_layers(named_unet())


def assert_layers(
    tensors: dict[str, torch.Tensor], layers: dict[str, tuple[int, ...]], fused: int = 1
) -> None:
    """Check names, shapes and scale of a kohya file whose layers are all of these."""
    assert {key.partition(".")[0] for key in tensors} == set(layers)
    assert len(tensors) == 3 * len(layers)
    for name, (out, fan_in, *kernel) in layers.items():
        down, up = tensors[f"{name}.lora_down.weight"], tensors[f"{name}.lora_up.weight"]
        assert down.shape[1:] == (fan_in, *kernel), name
        assert up.shape == (out, len(down), *(1 for _ in kernel)), name
        assert tensors[f"{name}.alpha"].shape == ()
        assert tensors[f"{name}.alpha"] / len(down) == ALPHA / RANK, name


def test_the_tables_have_every_layer_of_the_real_models() -> None:
    assert len(SDXL_UNET) == 788
    assert len(SDXL) == 1052
    assert len(readers.flux_layers()) == 418
    assert len(readers.flux_original_layers()) == 228


@pytest.mark.parametrize("form", ["kohya", "sd_scripts"])
def test_every_reader_knows_all_layers_of_an_sdxl_file(form: str) -> None:
    renamed = original_names() if form == "sd_scripts" else {}
    weights = lora_of(SDXL, tuple(UNET_TARGETS), clip=True)
    tensors = kohya_tensors(weights, ALPHA, KOHYA_PREFIXES, renamed)
    expected = {}
    for (model, path), shape in SDXL.items():
        original = SDXL_UNET[path][0] if model == "unet" else path
        name = original if form == "sd_scripts" else path
        layer = f"{KOHYA_PREFIXES[model]}_{name.replace('.', '_')}"
        assert layer in readers.comfyui_names(model, path, original)
        expected[layer] = shape
    assert_layers(tensors, expected)


def comfyui_reads(tensors: dict[str, torch.Tensor]) -> dict[str, int]:
    """Return how many layers of each model of SDXL ComfyUI applies."""
    found = dict.fromkeys(KOHYA_PREFIXES, 0)
    for model, path in SDXL:
        original = SDXL_UNET[path][0] if model == "unet" else path
        names = readers.comfyui_names(model, path, original)
        pairs = itertools.product(names, readers.COMFYUI_ENDS)
        found[model] += any(f"{name}{end}" in tensors for name, end in pairs)
    return found


def test_comfyui_reads_the_older_names_of_diffusers_and_not_pefts() -> None:
    weights = lora_of(SDXL, tuple(UNET_TARGETS), clip=True)
    encoders = {"text_encoder": 72, "text_encoder_2": 192}
    assert comfyui_reads(diffusers_old_tensors(weights, ALPHA)) == {"unet": 788, **encoders}
    # It drops the 560 layers of attention.
    assert comfyui_reads(peft_tensors(weights, ALPHA)) == {"unet": 228, **encoders}


@pytest.mark.parametrize("clip", [False, True])
def test_every_reader_knows_all_layers_of_a_flux_file(clip: bool) -> None:
    weights = lora_of(FLUX, tuple(BLOCK_TARGETS), clip=clip)
    expected = {f"lora_unet_{k}": shape for k, shape in readers.flux_original_layers().items()}
    if clip:
        clips = readers.clip_layers(12, 768)
        expected |= {f"lora_te1_{k.replace('.', '_')}": shape for k, shape in clips.items()}
    assert_layers(flux_export.kohya_tensors(weights, ALPHA), expected)


def job(kind: str, **training: Any) -> Any:
    loader = {"dataset": {"type": "IMAGE_CAPTION_DIR_DATASET", "dataset_dir": "/unused"}}
    loader["type"] = f"IMAGE_CAPTION_{'FLUX' if kind == 'FLUX_LORA' else 'SD'}_DATA_LOADER"  # type: ignore[assignment]
    length = {"max_train_steps": 1, "save_every_n_steps": 1}
    return parse_job(
        {"training": {"type": kind, "data_loader": loader, **length, **training}}
    ).training


FLUX_CHOICES = [
    tuple(BLOCK_TARGETS),
    ("to_q", "to_k", "to_v", "to_out.0"),
    ("to_q", "to_k", "to_v", "add_q_proj", "add_k_proj", "add_v_proj"),
    ("to_q", "to_k", "to_v", "add_q_proj"),
    ("to_q", "to_v", "add_q_proj", "add_k_proj", "add_v_proj"),
    ("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"),
    ("ff.net.0.proj", "ff.net.2"),
    ("proj_mlp",),
]


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("targets", FLUX_CHOICES)
def test_a_flux_lora_that_invokeai_cannot_read_is_reported(
    targets: tuple[str, ...], clip: bool
) -> None:
    options = {"flux_lora_target_modules": targets, "train_text_encoder": clip}
    tensors = peft_tensors(lora_of(FLUX, targets, clip=clip), ALPHA)
    reported = job("FLUX_LORA", lora_checkpoint_format="invoke_peft", **options).warnings()
    is_read = readers.invokeai_reads_flux_peft(tensors)
    assert any("InvokeAI" in warning for warning in reported) != is_read
    assert not any("InvokeAI" in warning for warning in job("FLUX_LORA", **options).warnings())


SDXL_CHOICES = [
    tuple(UNET_TARGETS),
    ("to_q", "to_k", "to_v", "to_out.0"),
    ("attn1.to_q",),
    ("ff.net.2",),
    ("time_emb_proj",),
    ("conv1", "conv2"),
    ("proj_in", "proj_out"),
    ("conv", "conv_shortcut"),
    (),
]


@pytest.mark.parametrize("form", ["kohya", "sd_scripts"])
@pytest.mark.parametrize("targets", SDXL_CHOICES)
def test_an_sdxl_lora_that_invokeai_cannot_know_is_reported(
    targets: tuple[str, ...], form: str
) -> None:
    renamed = original_names() if form == "sd_scripts" else {}
    weights = lora_of(SDXL, targets, clip=True)
    tensors = kohya_tensors(weights, ALPHA, KOHYA_PREFIXES, renamed)
    shapes = {key: tuple(tensor.shape) for key, tensor in sorted(tensors.items())}
    options = {"unet_lora_target_modules": targets} if targets else {"train_unet": False}
    reported = job("SDXL_LORA", lora_checkpoint_format=form, **options).warnings()
    is_known = readers.invokeai_knows_sdxl(shapes)
    assert any("InvokeAI" in warning for warning in reported) != is_known


@pytest.mark.parametrize(("form", "drops"), [("invoke_peft", True), ("diffusers_old", False)])
@pytest.mark.parametrize("targets", SDXL_CHOICES)
def test_an_sdxl_lora_that_comfyui_reads_in_part_is_reported(
    targets: tuple[str, ...], form: str, drops: bool
) -> None:
    weights = lora_of(SDXL, targets, clip=True)
    named = peft_tensors if form == "invoke_peft" else diffusers_old_tensors
    read = sum(comfyui_reads(named(weights, ALPHA)).values())
    options = {"unet_lora_target_modules": targets} if targets else {"train_unet": False}
    reported = " ".join(job("SDXL_LORA", lora_checkpoint_format=form, **options).warnings())
    assert "InvokeAI does not read" in reported
    assert ("ComfyUI leaves out" in reported) == (read < len(weights) // 2)
    assert drops or read == len(weights) // 2


def test_a_finetune_that_readers_cannot_use_is_reported() -> None:
    assert "InvokeAI and ComfyUI do not read" in " ".join(job("SDXL_FINETUNE").warnings())
    velocity = {"save_checkpoint_format": "single_file", "prediction_type": "v_prediction"}
    [reported] = job("SDXL_FINETUNE", **velocity).warnings()
    assert "full_diffusers" in reported
    assert job("SDXL_FINETUNE", save_checkpoint_format="full_diffusers").warnings() == []
