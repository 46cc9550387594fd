"""What weights files give for the parts of a base model, decided by their headers alone.

The checks before a job and the trainer use the same function, ``part_weights``: each tensor of a
file is read, or is known to be harmless, or is a reason to refuse the file.
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tasks.base_models.layouts import (
    Config,
    Naming,
    Shape,
    Shapes,
    Source,
    Sources,
    clip_shapes,
    clip_with_projection_shapes,
    file_shapes,
    flattened_clip,
    flux_transformer_shapes,
    older_vae,
    openclip,
    original_flux_transformer,
    original_unet,
    original_vae,
    same_names,
    t5_shapes,
    unet_shapes,
    vae_shapes,
)
from tasks.base_models.safetensors_header import Header, TensorEntry
from tasks.errors import BaseModelFilesError
from tasks.escaping import listed
from tasks.jobs.pipeline import PipelineConfig
from tasks.jobs.sdxl import SdxlConfig

_FLOATS = ("F64", "F32", "F16", "BF16")
_FP8 = ("F8_E4M3", "F8_E5M2")
# Types of quantized matrices, by the start of their names.
_PACKED = ("U8", "I8", "F4", "F6_", "F8_E8M0")
_FP8_FORMATS = ("float8_e4m3fn", "float8_e5m2")


@dataclass(frozen=True)
class Part:
    """One part of a family's base models.

    Attributes:
        noun: What messages call it.
        shapes: Returns its tensors by the names in diffusers' folders, given its config.json.
        namings: The layouts that files have it in.
        prefixes: How its names begin in the file of a whole model, in two: the second is not in
            the names of all that belongs to it.
        option: The option whose file replaces its weights.
        unused: The names of tensors that files have and the model does not need.
        aliases: Names of the same tensor.
        channels: The tensor whose second dimension is that of a variant, and these by its size.
    """

    noun: str
    shapes: Callable[[Config], Shapes]
    namings: tuple[Naming, ...]
    prefixes: tuple[tuple[str, str], ...]
    option: str | None = None
    unused: str = r"$."
    aliases: Mapping[str, str] = field(default_factory=dict)
    channels: tuple[str, Mapping[int, str]] = ("", {})


@dataclass(frozen=True)
class Family:
    """The parts of a family's base models by their folders.

    Attributes:
        noun: What messages call a model.
        pipelines: The diffusers pipelines whose models can be trained.
        latent_channels: The channels of its VAE's latents.
        parts: Its parts.
    """

    noun: str
    pipelines: tuple[str, ...]
    latent_channels: int
    parts: Mapping[str, Part]


_CLIP_UNUSED = r"(.*\.)?text_projection(\.weight)?$|vision_model\.|visual_projection\."
_VAE = Part(
    "VAE",
    vae_shapes,
    (original_vae, same_names, older_vae),
    (("first_stage_model.", ""), ("vae.", "")),
    "vae_model",
    r"loss\.|model_ema\.",
)
_EDIT_CHANNELS = {9: "an inpainting model", 8: "an editing model (InstructPix2Pix)"}
FLUX = Family(
    "FLUX",
    ("FluxPipeline", "FluxImg2ImgPipeline"),
    16,
    {
        "transformer": Part(
            "FLUX transformer",
            flux_transformer_shapes,
            (original_flux_transformer, same_names),
            (("model.diffusion_model.", ""), ("diffusion_model.", "")),
            "transformer_path",
            channels=(
                "x_embedder.weight",
                {384: "FLUX.1 Fill", 128: "FLUX.1 Depth or Canny", 448: "FLUX.1 Fill or Control"},
            ),
        ),
        "text_encoder": Part(
            "CLIP text encoder",
            clip_shapes,
            (same_names, flattened_clip),
            (("text_encoders.clip_l.", "transformer."), ("clip_l.", "transformer.")),
            "text_encoder_1_path",
            _CLIP_UNUSED,
        ),
        "text_encoder_2": Part(
            "T5 text encoder",
            t5_shapes,
            (same_names,),
            (("text_encoders.t5xxl.", "transformer."), ("t5xxl.", "transformer.")),
            "text_encoder_2_path",
            r"decoder\.|lm_head\.",
            {"shared.weight": "encoder.embed_tokens.weight"},
        ),
        "vae": _VAE,
    },
)
SDXL = Family(
    "SDXL",
    ("StableDiffusionXLPipeline", "StableDiffusionXLImg2ImgPipeline"),
    4,
    {
        "unet": Part(
            "SDXL UNet",
            unet_shapes,
            (original_unet, same_names),
            (("model.diffusion_model.", ""),),
            channels=("conv_in.weight", _EDIT_CHANNELS),
        ),
        "text_encoder": Part(
            "first text encoder",
            clip_shapes,
            (same_names, flattened_clip),
            (("conditioner.embedders.0.", "transformer."),),
            unused=_CLIP_UNUSED,
        ),
        "text_encoder_2": Part(
            "second text encoder",
            clip_with_projection_shapes,
            (openclip, same_names, flattened_clip),
            (("conditioner.embedders.1.", "model."),),
        ),
        "vae": _VAE,
    },
)
# Tensors that no part needs: buffers that newer models compute, markers, training leftovers.
_HARMLESS = re.compile(
    r"(.*\.)?(position_ids|logit_scale|attn_mask|scaled_fp8|spiece_model)$|denoiser\.sigmas$"
    r"|v_pred$|ztsnr$|model_ema\.|(betas|alphas_cumprod|alphas_cumprod_prev|sqrt_\w+|log_\w+"
    r"|posterior_\w+|logvar|lvlb_weights)$"
)
_SCALES = ("scale_weight", "weight_scale")
_BESIDE_WEIGHTS = (*_SCALES, "scale_input", "input_scale", "comfy_quant")
# Weights that no scale belongs to in a file whose other weights have one.
_TABLE = re.compile(r"(.*\.)?(shared|embed_tokens|\w+_embedding|relative_attention_bias)\.weight$")
_QUANTIZED = {
    r"\.(absmax|quant_map|nested_absmax|quant_state\.\w+|SCB)$": "bitsandbytes (nf4, fp4 or int8)",
    r"\.(wscales|wtscale|wcscales|smooth_factor|smooth_orig)$": "SVDQuant (Nunchaku)",
    r"\.(qweight|qzeros|g_idx)$": "GPTQ or AWQ",
    r"\.(weight_scale_2|weight_scale_inv)$": "blocks with scales (nvfp4 or fp8 in blocks)",
    r"\.weight\._(data|scale|scale_and_zero\w*)$|_qdata$": "quanto or torchao",
}
_OTHER_MODELS = {
    r"lora_(up|down|A|B)\b|\bhada_w|\blokr_w|dora_scale|\boft_": (
        "it is a LoRA; name the base model that it was made for"
    ),
    r"^(clip_[lg]|emb_params|string_to_param)$": "it is a textual inversion, not a base model",
    r"^(control_model\.|controlnet_|input_hint_block|zero_convs)": "it is a ControlNet",
    r"^(image_proj|ip_adapter)\b": "it is an IP-Adapter",
    r"^redux_(up|down)\b": "it is FLUX.1 Redux, which makes prompts of images; use FLUX.1-dev",
    r"^edm_(mean|std|vpred)": (
        "its UNet is trained with EDM's noise levels (Playground v2.5, CosXL), which are not "
        "supported; use another SDXL model"
    ),
    r"\bjoint_blocks\.\d": "it is Stable Diffusion 3",
    r"^cond_stage_model\.transformer\.": "it is Stable Diffusion 1",
    r"^cond_stage_model\.model\.": "it is Stable Diffusion 2",
    r"^conditioner\.embedders\.0\.model\.": "it is the refiner of SDXL; use the SDXL base model",
    r"\b(double|single)_stream_modulation": "it is FLUX.2",
    r"\bdistilled_guidance_layer\.": "it is Chroma, whose layers are not those of FLUX.1",
}
_ALONE = {
    r"\bdouble_blocks\.\d|\bsingle_transformer_blocks\.\d": "a FLUX transformer",
    r"\bconditioner\.embedders\.1\.": "parts of an SDXL model",
    r"\binput_blocks\.\d|\bdown_blocks\.\d+\.attentions": "a UNet",
    r"\bencoder\.block\.\d+\.layer\.": "a T5 text encoder",
    r"\btext_model\.encoder\.layers\.|\btransformer\.resblocks\.": "a CLIP text encoder",
    r"\b(encoder|decoder)\.(conv_in|mid|up|down)": "a VAE",
}


# What a transformer is whose only difference is its guidance input, or the lack of it.
_GUIDANCE = {
    True: "it is FLUX.1-dev's: use it with the model FLUX.1-dev",
    False: "it is FLUX.1-schnell's: use it with the model FLUX.1-schnell",
}


@dataclass(frozen=True)
class StoredTensor:
    """Where the files have one tensor of a part.

    Attributes:
        entry: The tensor in a file.
        scale: What multiplies it, if its weights are scaled.
        source: The rows that are taken of it.
        shape: Its shape in the model.
    """

    entry: TensorEntry
    scale: TensorEntry | None
    source: Source
    shape: Shape


def family_of(config: PipelineConfig) -> Family:
    """Return the family of a config's base models."""
    return SDXL if isinstance(config, SdxlConfig) else FLUX


def replacing_file(config: PipelineConfig, part: Part) -> Path | None:
    """Return the file that an option names instead of a part's weights; None if there is none."""
    path: str | None = getattr(config, part.option, None) if part.option else None
    return Path(path) if path is not None and path.endswith(".safetensors") else None


def part_weights(
    header: Header, family: Family, name: str, config: Config
) -> dict[str, StoredTensor]:
    """Return where files have a part's tensors, by the names in diffusers' folders.

    Args:
        header: The files.
        family: The family of the base model.
        name: The part.
        config: The part's ``config.json``.

    Raises:
        BaseModelFilesError: The files hold no such part, another one, or more than is read.
    """
    refuse_other_models(header)
    part = family.parts[name]
    shapes = _shapes(part, config, header)
    prefix, sources = _layout(header, part, shapes)
    if not holds_part(header, part, config):
        raise BaseModelFilesError(
            str(header.path), f"it has no {part.noun} by names that are read{what_instead(header)}"
        )
    _refuse_variant(header, part, sources, shapes)
    expected = file_shapes(sources, shapes)
    missing = sorted(expected.keys() - header.tensors.keys())
    wrong = [
        f"{it} {list(header.tensors[it].shape)} instead of {list(shape)}"
        for it, shape in sorted(expected.items())
        if it in header.tensors and not _fits(header.tensors[it].shape, shape)
    ]
    beside = {f"{it.removesuffix('weight')}{end}" for it in expected for end in _BESIDE_WEIGHTS}
    extra = _unread(header, family, part, prefix, expected.keys() | beside)
    if missing or wrong or extra:
        problem = _mismatch(part, missing, wrong, extra)
        raise BaseModelFilesError(str(header.path), problem)
    scales = _scales(header, prefix, expected)
    return {
        target: StoredTensor(
            header.tensors[source.name], scales.get(source.name), source, shapes[target]
        )
        for target, source in sources.items()
    }


def holds_part(header: Header, part: Part, config: Config) -> bool:
    """Return whether files have any tensor of a part."""
    _, sources = _layout(header, part, _shapes(part, config, header))
    return any(source.name in header.tensors for source in sources.values())


def refuse_other_models(header: Header) -> None:
    """Refuse weights that are quantized in ways that are not read, and files of other kinds.

    Raises:
        BaseModelFilesError: The files are such.
    """
    for pattern, how in _QUANTIZED.items():
        if any(map(re.compile(pattern).search, header.tensors)):
            raise _quantized(header, how)
    for entry in header.tensors.values():
        if entry.dtype.startswith(_PACKED) and len(entry.shape) > 1:
            raise _quantized(header, f"weights of type {entry.dtype}")
    for pattern, what in _OTHER_MODELS.items():
        if any(map(re.compile(pattern).search, header.tensors)):
            raise BaseModelFilesError(str(header.path), what)
    # Kontext has the names and shapes of FLUX.1-dev.
    named = f"{header.metadata.get('modelspec.architecture', '')} {header.path.name}"
    if "kontext" in named.lower():
        what = "it is FLUX.1 Kontext by its name, which edits images; use FLUX.1-dev"
        raise BaseModelFilesError(str(header.path), what)


def refuse_config(config: Config, path: Path, family: Family, part: Part) -> None:
    """Refuse a part whose config.json describes a variant that cannot be trained.

    Raises:
        BaseModelFilesError: It does.
    """
    if part is _VAE:
        channels = config.get("latent_channels", 4)
        if channels != family.latent_channels:
            problem = (
                f"it is the VAE of another model: its latents have {channels} channels, those of "
                f"{family.noun} {family.latent_channels}"
            )
            raise BaseModelFilesError(str(path), problem)
        if config.get("latents_mean") or config.get("latents_std"):
            problem = "it scales each channel of its latents (Playground v2.5): not supported"
            raise BaseModelFilesError(str(path), problem)
    quantized = config.get("quantization_config")
    if quantized:
        how = quantized.get("quant_method") if isinstance(quantized, dict) else quantized
        raise BaseModelFilesError(str(path), _quantized_message(str(how)))
    variant = part.channels[1].get(config.get("in_channels", 0))
    if variant is not None:
        raise BaseModelFilesError(str(path), _variant_message(variant, config["in_channels"]))


def _shapes(part: Part, config: Config, header: Header) -> Shapes:
    try:
        return part.shapes(config)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        problem = f"the config.json of its {part.noun} describes another kind of model"
        raise BaseModelFilesError(str(header.path), problem) from error


def _layout(header: Header, part: Part, shapes: Shapes) -> tuple[str, Sources]:
    """Return the prefix and the sources that match most names of the files."""
    best: tuple[int, str, Sources] = (-1, "", {})
    names = header.tensors
    for prefix in (*map("".join, part.prefixes), ""):
        for naming in part.namings:
            sources = {
                target: Source(prefix + source.name, source.rows, source.transposed)
                for target, source in naming(shapes).items()
            }
            for target, alias in part.aliases.items():
                if sources[target].name not in names and prefix + alias in names:
                    sources[target] = Source(prefix + alias)
            count = sum(source.name in names for source in sources.values())
            if count > best[0]:
                best = count, prefix, sources
    return best[1:]


def _refuse_variant(header: Header, part: Part, sources: Sources, shapes: Shapes) -> None:
    target, variants = part.channels
    entry = header.tensors.get(sources[target].name) if target else None
    if entry is None or len(entry.shape) < 2 or entry.shape[1] == shapes[target][1]:
        return
    if (variant := variants.get(entry.shape[1])) is not None:
        raise BaseModelFilesError(str(header.path), _variant_message(variant, entry.shape[1]))


def _variant_message(variant: str, channels: int) -> str:
    return (
        f"it is {variant}: its first layer has {channels} input channels, for more than a noisy "
        "image; use the text-to-image model of its family"
    )


def _fits(found: Shape, expected: Shape) -> bool:
    """Return whether shapes are equal; the original's attentions are convolutions of 1 x 1."""
    return found == expected or (len(expected) == 2 and found == (*expected, 1, 1))


def _unread(
    header: Header, family: Family, part: Part, prefix: str, used: Iterable[str]
) -> list[str]:
    """Return the names that are neither used nor known to be harmless nor another part's."""
    others = tuple(
        root for other in family.parts.values() if other is not part for root, _ in other.prefixes
    )
    unused = re.compile(part.unused)
    aliases = {prefix + alias for alias in part.aliases.values()}
    return sorted(
        name
        for name in header.tensors.keys() - set(used) - aliases
        if not _HARMLESS.match(name)
        and not unused.match(name.removeprefix(prefix))
        and not name.startswith(others)
    )


def _mismatch(part: Part, missing: list[str], wrong: list[str], extra: list[str]) -> str:
    unread = f"it has {listed(extra)}, which would not be read" if extra else ""
    if unread and not missing and not wrong:
        # The same text whichever part was read: all parts of a file find the same.
        return f"{unread}; {_GUIDANCE[True]}" if _is_guidance(extra) else unread
    parts = [
        f"it lacks {listed(missing)}" if missing else "",
        f"it has {listed(wrong)}" if wrong else "",
        unread,
    ]
    problem = f"it does not hold a {part.noun} of this base model: "
    problem += "; ".join(filter(None, parts))
    is_schnell = _is_guidance(missing) and not wrong and not extra
    return f"{problem}; {_GUIDANCE[False]}" if is_schnell else problem


def _is_guidance(names: list[str]) -> bool:
    return bool(names) and all("guidance_" in name for name in names)


def what_instead(header: Header) -> str:
    """Return what files hold that lack a part, as the end of a sentence."""
    for pattern, what in _ALONE.items():
        if any(map(re.compile(pattern).search, header.tensors)):
            return f"; it holds {what}"
    return ""


def _scales(header: Header, prefix: str, expected: Iterable[str]) -> dict[str, TensorEntry]:
    """Return the scale of each scaled weight.

    The rule is ComfyUI's: the stored weight times its scale is the weight.

    Raises:
        BaseModelFilesError: A weight is stored in another way.
    """
    formats = _declared_formats(header)
    formats |= {prefix + layer for layer in formats}
    scales = {}
    for name in expected:
        entry, stem = header.tensors[name], name.removesuffix("weight")
        if entry.dtype not in (*_FLOATS, *_FP8):
            raise _quantized(header, f"{name} of type {entry.dtype}")
        found = [f"{stem}{end}" for end in _SCALES if f"{stem}{end}" in header.tensors]
        if stem == name or not found:
            continue
        scale = header.tensors[found[0]]
        is_known = scale.dtype in _FLOATS and (
            not set(scale.shape) - {1}
            or (len(entry.shape) == 2 and scale.shape == (entry.shape[0], 1))
        )
        if not is_known or len(found) > 1:
            raise _quantized(header, f"{found[0]} of shape {list(scale.shape)}")
        if entry.dtype not in _FP8 and not found[0].endswith("scale_weight"):
            raise _quantized(header, f"{name} of type {entry.dtype} with a scale")
        scales[name] = scale
    is_declared = {name for name in expected if name.removesuffix(".weight") in formats}
    for name in expected:
        is_matrix = header.tensors[name].dtype in _FP8 and len(header.tensors[name].shape) == 2
        needs_scale = name in is_declared or (scales and not formats and not _TABLE.match(name))
        if is_matrix and needs_scale and name not in scales:
            raise BaseModelFilesError(str(header.path), f"its {name} is scaled and has no scale")
    return scales


def _declared_formats(header: Header) -> set[str]:
    """Return the layers that a file declares to be fp8 with a scale, as ComfyUI writes it.

    Raises:
        BaseModelFilesError: A format is not fp8.
    """
    formats: dict[str, str] = {}
    try:
        layers = json.loads(header.metadata.get("_quantization_metadata", "{}")).get("layers", {})
        formats |= {layer: str(values["format"]) for layer, values in layers.items()}
        for name, entry in header.tensors.items():
            if name.endswith(".comfy_quant"):
                values: Any = json.loads(entry.read())
                formats[name.removesuffix(".comfy_quant")] = str(values["format"])
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise _quantized(header, "a format that its comfy_quant does not name") from error
    for declared in formats.values():
        if declared not in _FP8_FORMATS:
            raise _quantized(header, declared)
    return set(formats)


def _quantized(header: Header, how: str) -> BaseModelFilesError:
    return BaseModelFilesError(str(header.path), _quantized_message(how))


def _quantized_message(how: str) -> str:
    return (
        f"its weights are quantized: {how}, which is not read; use the model's fp16, bf16 or fp8 "
        "file (for FLUX with less memory, together with the option quantization)"
    )
