"""Base models in the layouts that people have them in: loaded rightly, or refused by the header."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from safetensors.torch import load_file, save_file

from tasks.base_models.check import check_base_model
from tasks.base_models.files import encoders_identity, vae_digest
from tasks.base_models.layouts import flux_transformer_shapes, unet_shapes, vae_shapes
from tasks.base_models.parts import FLUX, SDXL, Family
from tasks.errors import BaseModelFilesError
from tests.worker.trainer.runs import config_of, sdxl_config_of
from worker.trainer.base_model import load_vae
from worker.trainer.flux.models import load_text_encoders, load_transformer
from worker.trainer.sdxl import models as sdxl_models
from worker.trainer.tiny_models import build_tiny_flux
from worker.trainer.weights import original_tensors

Tensors = dict[str, torch.Tensor]
CPU = torch.device("cpu")
FP8 = torch.float8_e4m3fn
COMFY_QUANT = torch.tensor(list(b'{"format": "float8_e4m3fn"}'), dtype=torch.uint8)


@pytest.fixture(scope="module")
def flux(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A FLUX with both kinds of blocks."""
    return build_tiny_flux(tmp_path_factory.mktemp("flux"), double_blocks=1, single_blocks=1)


def tensors_of(folder: Path, part: str) -> Tensors:
    return load_file(next((folder / part).glob("*.safetensors")))


def whole(folder: Path, family: Family, vae: str = "vae.") -> Tensors:
    """Return a model as ComfyUI saves it in one file."""
    tensors: Tensors = {}
    for name, part in family.parts.items():
        tensors |= original_tensors(part, tensors_of(folder, name))
    if family is FLUX:
        tensors = {name.replace("first_stage_model.", vae): t for name, t in tensors.items()}
    return tensors


def original(folder: Path, family: Family, part: str, prefix: str = "") -> Tensors:
    """Return a part by its original names."""
    start = "".join(family.parts[part].prefixes[0])
    found = original_tensors(family.parts[part], tensors_of(folder, part))
    return {prefix + name.removeprefix(start): tensor for name, tensor in found.items()}


def is_linear(name: str, tensor: torch.Tensor) -> bool:
    return name.endswith(".weight") and tensor.ndim == 2 and "embed" not in name


def plain_fp8(tensors: Tensors) -> Tensors:
    return {name: t.to(FP8) if is_linear(name, t) else t for name, t in tensors.items()}


def scaled_fp8(
    tensors: Tensors, end: str = "scale_weight", *, rows: bool = False, start: str = ""
) -> Tensors:
    """Store linear weights as fp8 with scales, as ComfyUI does."""
    stored: Tensors = {}
    for name, tensor in tensors.items():
        stored[name] = tensor
        if is_linear(name, tensor) and name.startswith(start):
            scale = tensor.abs().amax(dim=1, keepdim=True) if rows else tensor.abs().max()
            scale = (scale / 448).clamp(min=1e-12)
            stored[name] = (tensor / scale).to(FP8)
            stored[f"{name.removesuffix('weight')}{end}"] = scale
    return stored


def meaning(tensors: Tensors) -> Tensors:
    """Return the weights that stored tensors mean, float32."""
    means: Tensors = {}
    for name, tensor in tensors.items():
        stem = name.removesuffix("weight")
        scale = tensors.get(f"{stem}scale_weight", tensors.get(f"{stem}weight_scale"))
        means[name] = tensor.float() * (1.0 if scale is None else scale)
    return means


def marked(tensors: Tensors) -> Tensors:
    """Add what ComfyUI writes beside scaled weights."""
    names = [name.removesuffix("scale_weight") for name in tensors if name.endswith("scale_weight")]
    inputs = {f"{name}scale_input": torch.ones(()) for name in names}
    return {**tensors, **inputs, "scaled_fp8": torch.zeros(2).to(FP8)}


def comfy(tensors: Tensors) -> Tensors:
    names = [name.removesuffix("weight_scale") for name in tensors if name.endswith("weight_scale")]
    return {**tensors, **{f"{name}comfy_quant": COMFY_QUANT.clone() for name in names}}


def saved(path: Path, tensors: Mapping[str, torch.Tensor], **metadata: str) -> str:
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata)
    return str(path)


def assert_loads(model: torch.nn.Module, expected: Tensors) -> None:
    found = model.state_dict()
    expected = {
        name if name in found else name.removeprefix("text_model."): tensor
        for name, tensor in expected.items()
    }
    assert found.keys() - {"encoder.embed_tokens.weight"} == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


def messages(config: Any) -> str:
    return "\n".join(map(str, check_base_model(config)))


TRANSFORMERS: dict[str, Callable[[Tensors, Tensors], Tensors]] = {
    "original names": lambda bfl, diffusers: bfl,
    "float64": lambda bfl, diffusers: {name: tensor.double() for name, tensor in bfl.items()},
    "original names with a prefix": lambda bfl, diffusers: prefixed(bfl),
    "diffusers' names": lambda bfl, diffusers: diffusers,
    "fp8, original names": lambda bfl, diffusers: plain_fp8(bfl),
    "fp8, diffusers' names": lambda bfl, diffusers: plain_fp8(diffusers),
    "scaled fp8": lambda bfl, diffusers: marked(scaled_fp8(bfl)),
    "scaled fp8 with a prefix": lambda bfl, diffusers: prefixed(marked(scaled_fp8(bfl))),
    "scaled fp8, diffusers' names": lambda bfl, diffusers: marked(scaled_fp8(diffusers)),
    "some layers scaled": lambda bfl, diffusers: scaled_fp8(bfl, start="double_blocks."),
    "a scale for each row": lambda bfl, diffusers: scaled_fp8(bfl, "weight_scale", rows=True),
    "comfy_quant": lambda bfl, diffusers: comfy(scaled_fp8(bfl, "weight_scale")),
}


def prefixed(tensors: Tensors) -> Tensors:
    return {f"model.diffusion_model.{name}": tensor for name, tensor in tensors.items()}


@pytest.mark.parametrize("layout", TRANSFORMERS)
def test_a_transformer_is_read_in_every_layout(flux: Path, tmp_path: Path, layout: str) -> None:
    diffusers = tensors_of(flux, "transformer")
    stored = TRANSFORMERS[layout](original(flux, FLUX, "transformer"), diffusers)
    config = config_of(flux, transformer_path=saved(tmp_path / "t.safetensors", stored))
    assert messages(config) == ""
    means = meaning(stored)
    if "double_blocks.0.img_attn.qkv.weight" in "".join(stored):
        means = {name.removeprefix("model.diffusion_model."): t for name, t in means.items()}
        bfl = {name: means[name] for name in original(flux, FLUX, "transformer")}
        model = load_transformer(config, CPU)
        assert_loads_original(model, bfl)
    else:
        assert_loads(load_transformer(config, CPU), {name: means[name] for name in diffusers})


def assert_loads_original(model: FluxTransformer2DModel, expected: Tensors) -> None:
    part = FLUX.parts["transformer"]
    start = "".join(part.prefixes[0])
    for name, tensor in original_tensors(part, model.state_dict()).items():
        assert torch.equal(tensor, expected[name.removeprefix(start)]), name


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_scaled_weights_are_rounded_once(flux: Path, tmp_path: Path, dtype: str) -> None:
    stored = scaled_fp8(tensors_of(flux, "transformer"))
    path = saved(tmp_path / "t.safetensors", stored)
    model = load_transformer(config_of(flux, transformer_path=path, weight_dtype=dtype), CPU)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, meaning(stored)[name].to(getattr(torch, dtype))), name


T5_FILES: dict[str, Callable[[Tensors], Tensors]] = {
    "shared": lambda t5: t5,
    "embed_tokens": lambda t5: {
        name.replace("shared.", "encoder.embed_tokens."): tensor for name, tensor in t5.items()
    },
    "both": lambda t5: {**t5, "encoder.embed_tokens.weight": t5["shared.weight"].clone()},
    "fp8": lambda t5: {name: t.to(FP8) for name, t in t5.items()},
    "scaled fp8": lambda t5: marked(scaled_fp8(t5)),
    "with its decoder": lambda t5: {
        **t5,
        "decoder.block.0.x": torch.ones(1),
        "lm_head.w": COMFY_QUANT,
    },
}


@pytest.mark.parametrize("layout", T5_FILES)
@pytest.mark.parametrize("in_one", [False, True], ids=["own file", "in one file"])
def test_t5_is_read_in_every_layout(flux: Path, tmp_path: Path, layout: str, in_one: bool) -> None:
    t5 = tensors_of(flux, "text_encoder_2")
    stored = T5_FILES[layout](t5)
    path = tmp_path / "t5.safetensors"
    if in_one:
        rest = {k: v for k, v in whole(flux, FLUX).items() if ".t5xxl." not in k}
        start = "text_encoders.t5xxl.transformer."
        saved(path, {**rest, **{start + name: tensor for name, tensor in stored.items()}})
        config = config_of(path, single_file_config=str(flux))
    else:
        config = config_of(flux, text_encoder_2_path=saved(path, stored))
    assert messages(config) == ""
    means = {
        name.replace("encoder.embed_tokens.", "shared."): tensor
        for name, tensor in meaning(stored).items()
    }
    assert_loads(load_text_encoders(config, CPU).text_encoder_2, {name: means[name] for name in t5})


EXTRA_CLIP = {
    "text_projection.weight": torch.ones(2, 2),
    "logit_scale": torch.ones(()),
    "text_model.embeddings.position_ids": torch.arange(77)[None],
    "vision_model.embeddings.class_embedding": torch.ones(2),
    "visual_projection.weight": torch.ones(2, 2),
}


@pytest.mark.parametrize("layout", ["fp16", "extra keys", "without text_model", "fp8"])
def test_clip_is_read_in_every_layout(flux: Path, tmp_path: Path, layout: str) -> None:
    clip = tensors_of(flux, "text_encoder")
    stored: Tensors = {
        "fp16": {name: tensor.half() for name, tensor in clip.items()},
        "extra keys": {**clip, **EXTRA_CLIP},
        "without text_model": {n.removeprefix("text_model."): t for n, t in clip.items()},
        "fp8": plain_fp8(clip),
    }[layout]
    config = config_of(flux, text_encoder_1_path=saved(tmp_path / "c.safetensors", stored))
    assert messages(config) == ""
    expected = {
        name: stored.get(name, stored.get(name.removeprefix("text_model."), clip[name])).float()
        for name in clip
    }
    assert_loads(load_text_encoders(config, CPU).text_encoder, expected)


def flux_parts(config: Any) -> dict[str, torch.nn.Module]:
    pipeline = load_text_encoders(config, CPU)
    return {
        "transformer": load_transformer(config, CPU),
        "text_encoder": pipeline.text_encoder,
        "text_encoder_2": pipeline.text_encoder_2,
        "vae": load_vae(config, CPU),
    }


@pytest.mark.parametrize("vae", ["vae.", "first_stage_model."])
def test_a_whole_flux_is_read(flux: Path, tmp_path: Path, vae: str) -> None:
    extra = {
        "text_encoders.clip_l.logit_scale": torch.ones(()),
        "text_encoders.clip_l.transformer.text_projection.weight": torch.ones(2, 2),
        "text_encoders.t5xxl.logit_scale": torch.ones(()),
    }
    path = saved(tmp_path / "flux.safetensors", {**whole(flux, FLUX, vae), **extra})
    config = config_of(path, single_file_config=str(flux))
    assert messages(config) == ""
    for part, model in flux_parts(config).items():
        assert_loads(model, tensors_of(flux, part))


def test_files_complete_a_single_file(flux: Path, tmp_path: Path) -> None:
    bare = original(flux, FLUX, "transformer")
    path = saved(tmp_path / "flux.safetensors", bare)
    config = config_of(path, single_file_config=str(flux))
    assert "give it as transformer_path" in messages(config)
    files: dict[str, Any] = {
        "text_encoder_1_path": str(next((flux / "text_encoder").glob("*.safetensors"))),
        "text_encoder_2_path": str(next((flux / "text_encoder_2").glob("*.safetensors"))),
        "vae_model": saved(tmp_path / "ae.safetensors", original(flux, FLUX, "vae")),
    }
    config = config_of(path, single_file_config=str(flux), **files)
    assert messages(config) == ""
    for part, model in flux_parts(config).items():
        assert_loads(model, tensors_of(flux, part))


@pytest.mark.parametrize("names", ["original", "diffusers", "older diffusers", "prefixed"])
@pytest.mark.parametrize("family", [FLUX, SDXL], ids=["flux", "sdxl"])
def test_a_vae_file_is_read_in_every_layout(
    flux: Path, tiny_sdxl: Path, tmp_path: Path, names: str, family: Family
) -> None:
    folder = flux if family is FLUX else tiny_sdxl
    own = {name: tensor + 1 for name, tensor in tensors_of(folder, "vae").items()}
    start = "first_stage_model."
    named = original_tensors(family.parts["vae"], own)
    older = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    stored = {
        "original": {name.removeprefix(start): tensor for name, tensor in named.items()},
        "diffusers": own,
        "older diffusers": {renamed(name, older): tensor for name, tensor in own.items()},
        "prefixed": named,
    }[names]
    path = saved(tmp_path / "ae.safetensors", stored)
    if family is FLUX:
        config = config_of(flux, vae_model=path)
    else:
        config = sdxl_config_of("SDXL_LORA", tiny_sdxl, vae_model=path)
    assert messages(config) == ""
    assert_loads(load_vae(config, CPU), own)


def renamed(name: str, words: Mapping[str, str]) -> str:
    for word, other in words.items():
        name = name.replace(f".{word}.", f".{other}.")
    return name


@pytest.mark.parametrize("layout", ["training leftovers", "fp8"])
def test_a_whole_sdxl_is_read(tiny_sdxl: Path, tmp_path: Path, layout: str) -> None:
    extra = {
        "conditioner.embedders.0.transformer.text_model.embeddings.position_ids": torch.ones(1, 77),
        "conditioner.embedders.1.model.logit_scale": torch.ones(()),
        "denoiser.sigmas": torch.ones(1000),
        "model_ema.decay": torch.ones(()),
        "alphas_cumprod": torch.ones(1000),
    }
    tensors = whole(tiny_sdxl, SDXL)
    stored = plain_fp8(tensors) if layout == "fp8" else tensors
    path = saved(tmp_path / "sdxl.safetensors", {**stored, **extra})
    config = sdxl_config_of(
        "SDXL_LORA", path, single_file_config=str(tiny_sdxl), weight_dtype="float32"
    )
    assert messages(config) == ""
    pipeline = sdxl_models.load_text_encoders(config, CPU)
    models: dict[str, torch.nn.Module] = {
        "unet": sdxl_models.load_unet(config, CPU, torch.float32),
        "text_encoder": pipeline.text_encoder,
        "text_encoder_2": pipeline.text_encoder_2,
        "vae": load_vae(config, CPU),
    }
    for name, model in models.items():
        found = {n: t.float() for n, t in model.state_dict().items()}
        if name == "text_encoder":
            found = {f"text_model.{key}": tensor for key, tensor in found.items()}
        for key, tensor in original_tensors(SDXL.parts[name], found).items():
            assert torch.equal(tensor, stored[key].float()), key


def test_an_sdxl_without_vae_takes_another(tiny_sdxl: Path, tmp_path: Path) -> None:
    tensors = whole(tiny_sdxl, SDXL)
    bare = {name: t for name, t in tensors.items() if not name.startswith("first_stage_model.")}
    path = saved(tmp_path / "sdxl.safetensors", bare)
    options: dict[str, Any] = {"single_file_config": str(tiny_sdxl)}
    refused = messages(sdxl_config_of("SDXL_LORA", path, **options))
    assert "has no VAE; it is not a whole model; give the rest by vae_model" in refused
    config = sdxl_config_of("SDXL_LORA", path, vae_model=str(tiny_sdxl), **options)
    assert messages(config) == ""
    assert_loads(load_vae(config, CPU), tensors_of(tiny_sdxl, "vae"))


def with_channels(tensors: Tensors, name: str, channels: int) -> Tensors:
    old = tensors[name]
    return {**tensors, name: torch.zeros(old.shape[0], channels, *old.shape[2:])}


def without(tensors: Tensors, word: str) -> Tensors:
    return {name: tensor for name, tensor in tensors.items() if word not in name}


def nf4(tensors: Tensors) -> Tensors:
    name = "double_blocks.0.img_attn.qkv.weight"
    packed = torch.zeros(tensors[name].numel() // 2, 1, dtype=torch.uint8)
    state = {f"{name}.absmax": torch.ones(4), f"{name}.quant_state.bitsandbytes__nf4": COMFY_QUANT}
    return {**tensors, name: packed, **state}


QKV = "double_blocks.0.img_attn.qkv"
REFUSED: dict[str, tuple[Callable[[Tensors], Tensors], str]] = {
    "nf4": (nf4, "bitsandbytes"),
    "int8": (
        lambda t: {**t, f"{QKV}.weight": t[f"{QKV}.weight"].to(torch.int8)},
        "weights of type I8",
    ),
    "nunchaku": (lambda t: {**t, f"{QKV}.wscales": torch.ones(4)}, "SVDQuant"),
    "gptq": (lambda t: {**t, f"{QKV}.qweight": torch.ones(4)}, "GPTQ"),
    "nvfp4": (lambda t: {**t, f"{QKV}.weight_scale_2": torch.ones(())}, "nvfp4"),
    "another comfy_quant": (
        lambda t: {**t, f"{QKV}.comfy_quant": torch.tensor(list(b'{"format": "mxfp8"}')).byte()},
        "mxfp8",
    ),
    "a damaged comfy_quant": (
        lambda t: {**t, f"{QKV}.comfy_quant": torch.zeros(3).byte()},
        "comfy_quant does not name",
    ),
    "scales of blocks": (
        lambda t: {**scaled_fp8(t), f"{QKV}.scale_weight": torch.ones(2, 2)},
        f"{QKV}.scale_weight of shape [2, 2]",
    ),
    "a lost scale": (
        lambda t: without(scaled_fp8(t), f"{QKV}.scale_weight"),
        f"{QKV}.weight is scaled and has no scale",
    ),
    "a scale of no weight": (
        lambda t: {**t, "double_blocks.7.img_mlp.0.scale_weight": torch.ones(())},
        "double_blocks.7.img_mlp.0.scale_weight, which would not be read",
    ),
    "a strange scale": (
        lambda t: {**t, f"{QKV}.weight_scale": torch.ones(())},
        "of type F32 with a scale",
    ),
    "a lost layer": (lambda t: without(t, "txt_mlp.2"), "lacks double_blocks.0.txt_mlp.2.bias"),
    "another width": (
        lambda t: {**t, "vector_in.in_layer.weight": torch.ones(32, 7)},
        "vector_in.in_layer.weight [32, 7] instead of [32, 32]",
    ),
    "an unknown key": (lambda t: {**t, "stranger": torch.ones(1)}, "stranger, which would not be"),
    "Fill": (lambda t: with_channels(t, "img_in.weight", 384), "it is FLUX.1 Fill"),
    "Depth": (lambda t: with_channels(t, "img_in.weight", 128), "FLUX.1 Depth or Canny"),
    "Redux": (lambda t: {"redux_up.weight": torch.ones(2, 2)}, "FLUX.1 Redux"),
    "Chroma": (
        lambda t: {**t, "distilled_guidance_layer.in_proj.weight": torch.ones(2, 2)},
        "it is Chroma",
    ),
    "FLUX.2": (
        lambda t: {**t, "double_stream_modulation_img.lin.weight": torch.ones(2, 2)},
        "it is FLUX.2",
    ),
    "schnell": (lambda t: without(t, "guidance_in"), "FLUX.1-schnell"),
    "a LoRA": (lambda t: {"lora_unet_x.lora_up.weight": torch.ones(2, 2)}, "it is a LoRA"),
    "a LoRA in peft's form": (lambda t: {"transformer.x.lora_A.weight": torch.ones(2)}, "a LoRA"),
    "an embedding": (lambda t: {"clip_l": torch.ones(2, 2)}, "a textual inversion"),
    "a VAE": (
        lambda t: {"encoder.conv_in.weight": torch.ones(2, 2)},
        "has no FLUX transformer by names that are read; it holds a VAE",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_other_transformers_are_refused_by_their_header(
    flux: Path, tmp_path: Path, what: str
) -> None:
    change, sentence = REFUSED[what]
    stored = change(original(flux, FLUX, "transformer"))
    config = config_of(flux, transformer_path=saved(tmp_path / "t.safetensors", stored))
    assert sentence in messages(config)
    with pytest.raises(BaseModelFilesError, match="cannot be used"):
        load_transformer(config, CPU)


SDXL_REFUSED: dict[str, tuple[Callable[[Tensors], Tensors], str]] = {
    "inpainting": (
        lambda t: with_channels(t, "model.diffusion_model.input_blocks.0.0.weight", 9),
        "it is an inpainting model",
    ),
    "Playground": (lambda t: {**t, "edm_mean": torch.ones(4)}, "EDM"),
    "CosXL": (lambda t: {**t, "edm_vpred.sigma_max": torch.ones(1)}, "EDM"),
    "SD 1.5": (lambda t: {"cond_stage_model.transformer.x": torch.ones(1)}, "Stable Diffusion 1"),
    "SD 2": (lambda t: {"cond_stage_model.model.x": torch.ones(1)}, "Stable Diffusion 2"),
    "SD 3": (lambda t: {"model.diffusion_model.joint_blocks.0.x": torch.ones(1)}, "Diffusion 3"),
    "refiner": (lambda t: {"conditioner.embedders.0.model.x": torch.ones(1)}, "the refiner"),
    "a UNet alone": (lambda t: without(without(t, "cond"), "first_stage"), "no VAE; it is not"),
    "a FLUX": (lambda t: {"double_blocks.0.x": torch.ones(1)}, "it holds a FLUX transformer"),
    "an unknown key": (lambda t: {**t, "stranger": torch.ones(1)}, "stranger, which would not be"),
}


@pytest.mark.parametrize("what", SDXL_REFUSED)
def test_other_single_files_are_refused_by_their_header(
    tiny_sdxl: Path, tmp_path: Path, what: str
) -> None:
    change, sentence = SDXL_REFUSED[what]
    path = saved(tmp_path / "sdxl.safetensors", change(whole(tiny_sdxl, SDXL)))
    config = sdxl_config_of("SDXL_LORA", path, single_file_config=str(tiny_sdxl))
    assert sentence in messages(config)
    assert messages(config).count(sentence) == 1


@pytest.mark.parametrize(
    ("start", "sentence"),
    [
        (b"GGUF\3\0\0\0", "it is a GGUF file"),
        (b"PK\3\4aaaa", "it is a pickle"),
        (b"version https://git-lfs", "Git LFS"),
        (b"<!DOCTYPE html>", "a web page"),
    ],
)
def test_files_of_another_format_are_named(
    flux: Path, tmp_path: Path, start: bytes, sentence: str
) -> None:
    path = tmp_path / "t.safetensors"
    path.write_bytes(start + bytes(100))
    assert sentence in messages(config_of(flux, transformer_path=str(path)))
    assert sentence in messages(config_of(path, single_file_config=str(flux)))


def test_shapes_are_those_of_the_published_models() -> None:
    unet: dict[str, Any] = {
        "block_out_channels": (320, 640, 1280),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, 2, 10),
        "attention_head_dim": (5, 10, 20),
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
        "cross_attention_dim": 2048,
    }
    vae: dict[str, Any] = {
        "block_out_channels": (128, 256, 512, 512),
        "layers_per_block": 2,
        "latent_channels": 16,
        "use_quant_conv": False,
        "use_post_quant_conv": False,
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
    }
    with torch.device("meta"):
        models: list[tuple[Any, dict[str, Any]]] = [
            (
                FluxTransformer2DModel(guidance_embeds=True),
                flux_transformer_shapes({"guidance_embeds": True}),
            ),
            (UNet2DConditionModel(**unet), unet_shapes(unet)),
            (AutoencoderKL(**vae), vae_shapes(vae)),
        ]
    for model, shapes in models:
        assert {name: tuple(t.shape) for name, t in model.state_dict().items()} == shapes


def test_kontext_is_refused_by_its_name(flux: Path, tmp_path: Path) -> None:
    stored = original(flux, FLUX, "transformer")
    by_name = saved(tmp_path / "flux1-dev-kontext_fp8.safetensors", stored)
    metadata = {"modelspec.architecture": "flux-1-kontext-dev"}
    by_header = saved(tmp_path / "t.safetensors", stored, **metadata)
    for path in (by_name, by_header):
        assert "FLUX.1 Kontext" in messages(config_of(flux, transformer_path=path))


def test_a_vae_file_decides_the_cache_entries(flux: Path, tmp_path: Path) -> None:
    own = tensors_of(flux, "vae")
    other = {name: tensor + 1 for name, tensor in own.items()}
    paths = [saved(tmp_path / f"{n}.safetensors", t) for n, t in enumerate((own, own, other))]
    digests = [vae_digest(config_of(flux, vae_model=path)) for path in paths]
    assert digests[0] == digests[1] != digests[2]
    assert vae_digest(config_of(flux)) not in digests
    identities = {encoders_identity(config_of(flux, vae_model=path)) for path in paths}
    assert len(identities) == 3


def test_a_quantized_folder_is_refused(flux: Path, tmp_path: Path) -> None:
    folder = tmp_path / "flux"
    folder.symlink_to(flux)
    assert messages(config_of(folder)) == ""
    folder.unlink()
    folder.mkdir()
    for item in flux.iterdir():
        if item.name != "transformer":
            (folder / item.name).symlink_to(item)
    (folder / "transformer").mkdir()
    config = json.loads((flux / "transformer" / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes"}
    (folder / "transformer" / "config.json").write_text(json.dumps(config))
    assert "its weights are quantized: bitsandbytes" in messages(config_of(folder))
