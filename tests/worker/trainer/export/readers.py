"""What InvokeAI 6.14, ComfyUI 0.3.75 and sd-scripts 48d368f know of LoRAs, as tables of facts.

A layer of a real model is (out, in) or (out, in, kernel, kernel). The tables are written from the
models' published architectures and the readers' rules; no code of the project makes them.
"""

import re
from collections.abc import Iterator, Mapping

Shape = tuple[int, ...]
Layers = dict[str, Shape]

_CLIP = {
    "self_attn.q_proj": (1, 1),
    "self_attn.k_proj": (1, 1),
    "self_attn.v_proj": (1, 1),
    "self_attn.out_proj": (1, 1),
    "mlp.fc1": (4, 1),
    "mlp.fc2": (1, 4),
}


def clip_layers(depth: int, width: int) -> Layers:
    """Return the layers of a CLIP text encoder: 12 of 768 (L), or 32 of 1280 (bigG)."""
    return {
        f"text_model.encoder.layers.{number}.{layer}": (out * width, fan_in * width)
        for number in range(depth)
        for layer, (out, fan_in) in _CLIP.items()
    }


def _resnet(fan_in: int, out: int) -> dict[str, tuple[str, Shape]]:
    shortcut = {"conv_shortcut": ("skip_connection", (out, fan_in, 1, 1))}
    return {
        "conv1": ("in_layers.2", (out, fan_in, 3, 3)),
        "time_emb_proj": ("emb_layers.1", (out, 1280)),
        "conv2": ("out_layers.3", (out, out, 3, 3)),
        **(shortcut if fan_in != out else {}),
    }


def _attention(width: int, depth: int) -> dict[str, tuple[str, Shape]]:
    shapes: dict[str, Shape] = {}
    for name, context in (("attn1", width), ("attn2", 2048)):
        shapes |= {f"{name}.{layer}": (width, width) for layer in ("to_q", "to_out.0")}
        shapes |= {f"{name}.{layer}": (width, context) for layer in ("to_k", "to_v")}
    shapes |= {"ff.net.0.proj": (width * 8, width), "ff.net.2": (width, width * 4)}
    layers: dict[str, tuple[str, Shape]] = {
        name: (name, (width, width)) for name in ("proj_in", "proj_out") if depth
    }
    for number in range(depth):
        block = f"transformer_blocks.{number}"
        layers |= {f"{block}.{layer}": (f"{block}.{layer}", it) for layer, it in shapes.items()}
    return layers


def _below(
    path: str, original: str, layers: dict[str, tuple[str, Shape]]
) -> dict[str, tuple[str, Shape]]:
    return {f"{path}.{it}": (f"{original}.{name}", shape) for it, (name, shape) in layers.items()}


def sdxl_unet() -> dict[str, tuple[str, Shape]]:
    """Return SDXL's layers by diffusers' path: the original model's path, and the shape."""
    stages = ((320, 0), (640, 2), (1280, 10))
    found = _below("mid_block.resnets.0", "middle_block.0", _resnet(1280, 1280))
    found |= _below("mid_block.attentions.0", "middle_block.1", _attention(1280, 10))
    found |= _below("mid_block.resnets.1", "middle_block.2", _resnet(1280, 1280))
    # The widths that up blocks get from down blocks.
    place, skips = 1, [320]
    for block, (width, depth) in enumerate(stages):
        for layer in range(2):
            path, original = f"down_blocks.{block}", f"input_blocks.{place}"
            found |= _below(f"{path}.resnets.{layer}", f"{original}.0", _resnet(skips[-1], width))
            found |= _below(f"{path}.attentions.{layer}", f"{original}.1", _attention(width, depth))
            place += 1
            skips.append(width)
        if block < 2:
            name, shape = f"input_blocks.{place}.0.op", (width, width, 3, 3)
            found[f"down_blocks.{block}.downsamplers.0.conv"] = name, shape
            place += 1
            skips.append(width)
    place, fan_in = 0, 1280
    for block, (width, depth) in enumerate(reversed(stages)):
        for layer in range(3):
            path, original = f"up_blocks.{block}", f"output_blocks.{place}"
            resnet = _resnet(fan_in + skips.pop(), width)
            found |= _below(f"{path}.resnets.{layer}", f"{original}.0", resnet)
            found |= _below(f"{path}.attentions.{layer}", f"{original}.1", _attention(width, depth))
            place, fan_in = place + 1, width
        if block < 2:
            name, shape = f"output_blocks.{place - 1}.2.conv", (width, width, 3, 3)
            found[f"up_blocks.{block}.upsamplers.0.conv"] = name, shape
    return found


# FLUX.1: diffusers' layers of a block, and the layers of the original that they are parts of.
FLUX_WIDTH, FLUX_DOUBLE, FLUX_SINGLE = 3072, 19, 38
_DOUBLE = {
    f"{original}_{layer}": shape
    for original in ("img", "txt")
    for layer, shape in {
        "attn_qkv": (3, 1),
        "attn_proj": (1, 1),
        "mlp_0": (4, 1),
        "mlp_2": (1, 4),
    }.items()
}
_SINGLE = {"linear1": (7, 1), "linear2": (1, 5)}
_FLUX_PARTS = {
    "transformer_blocks": {
        **{f"attn.{n}": (1, 1) for n in ("to_q", "to_k", "to_v", "to_out.0")},
        **{f"attn.{n}": (1, 1) for n in ("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")},
        **{f"{ff}.net.0.proj": (4, 1) for ff in ("ff", "ff_context")},
        **{f"{ff}.net.2": (1, 4) for ff in ("ff", "ff_context")},
    },
    "single_transformer_blocks": {
        **{f"attn.{n}": (1, 1) for n in ("to_q", "to_k", "to_v")},
        "proj_mlp": (4, 1),
        "proj_out": (1, 5),
    },
}


_FUSED = {
    "double_blocks": {
        "img_attn_qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
        "txt_attn_qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
        "img_attn_proj": ("attn.to_out.0",),
        "txt_attn_proj": ("attn.to_add_out",),
        "img_mlp_0": ("ff.net.0.proj",),
        "img_mlp_2": ("ff.net.2",),
        "txt_mlp_0": ("ff_context.net.0.proj",),
        "txt_mlp_2": ("ff_context.net.2",),
    },
    "single_blocks": {
        "linear1": ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"),
        "linear2": ("proj_out",),
    },
}


def flux_parts() -> dict[str, tuple[str, ...]]:
    """Return diffusers' layers of which each of the original FLUX.1's layers consists, in order."""
    return {
        f"{kind}_{number}_{layer}": tuple(
            f"{'single_' * (kind == 'single_blocks')}transformer_blocks.{number}.{part}"
            for part in parts
        )
        for kind, layers in _FUSED.items()
        for number in range(FLUX_DOUBLE if kind == "double_blocks" else FLUX_SINGLE)
        for layer, parts in layers.items()
    }


def flux_layers() -> Layers:
    """Return FLUX.1's layers in blocks by diffusers' path."""
    return {
        f"{kind}.{number}.{layer}": (out * FLUX_WIDTH, fan_in * FLUX_WIDTH)
        for kind, parts in _FLUX_PARTS.items()
        for number in range(FLUX_DOUBLE if kind == "transformer_blocks" else FLUX_SINGLE)
        for layer, (out, fan_in) in parts.items()
    }


def flux_original_layers() -> Layers:
    """Return the original FLUX.1's layers in blocks by their flattened names."""
    return {
        f"{kind}_{number}_{layer}": (out * FLUX_WIDTH, fan_in * FLUX_WIDTH)
        for kind, layers, count in (
            ("double_blocks", _DOUBLE, FLUX_DOUBLE),
            ("single_blocks", _SINGLE, FLUX_SINGLE),
        )
        for number in range(count)
        for layer, (out, fan_in) in layers.items()
    }


def invokeai_reads_flux_peft(keys: Mapping[str, object]) -> bool:
    """InvokeAI knows FLUX by two layers, takes q, k, v together, and knows nothing but FLUX's."""
    ends = ("lora_A.weight", "lora_B.weight")
    needed = ("single_transformer_blocks.0.attn.to_q", "transformer_blocks.0.attn.add_q_proj")
    if not all(f"transformer.{layer}.{end}" in keys for layer in needed for end in ends):
        return False
    layers = {key.rsplit(".", 2)[0] for key in keys}
    if not all(layer.startswith("transformer.") for layer in layers):
        return False
    for number in range(FLUX_DOUBLE):
        attention = f"transformer.transformer_blocks.{number}.attn"
        for inputs in (("to_q", "to_k", "to_v"), ("add_q_proj", "add_k_proj", "add_v_proj")):
            if len({f"{attention}.{layer}" in layers for layer in inputs}) > 1:
                return False
    return True


_INVOKEAI_BLOCKS = re.compile(
    r"^lora_unet_(?:(?:down|up)_blocks_\d+_attentions_\d+|mid_block_attentions_\d+"
    r"|(?:in|out)put_blocks_\d+_\d+|middle_block_\d+)_transformer_blocks_(\d+)_"
)


def invokeai_knows_sdxl(shapes: Mapping[str, Shape]) -> bool:
    """InvokeAI knows SDXL by a context of 2048, by time embeddings of 1280, or by deep blocks."""
    for key, shape in shapes.items():
        if not key.startswith("lora_unet_") or not key.endswith(".lora_down.weight"):
            continue
        if "_attn2_to_k." in key or "_attn2_to_v." in key:
            return shape[1] == 2048
        if "time_emb_proj.lora_down" in key:
            return shape[1] == 1280
    blocks = filter(None, map(_INVOKEAI_BLOCKS.match, shapes))
    return any(int(match[1]) >= 2 for match in blocks)


COMFYUI_ENDS = (
    ".lora_up.weight",
    "_lora.up.weight",
    ".lora_B.weight",
    ".lora.up.weight",
    ".lora_linear_layer.up.weight",
)
"""What may follow a layer's name in ComfyUI; the first that is there counts."""


def comfyui_names(model: str, path: str, original: str) -> Iterator[str]:
    """Yield the names that ComfyUI knows one of SDXL's layers by."""
    if model == "unet":
        yield f"lora_unet_{original.replace('.', '_')}"
        yield f"lora_unet_{path.replace('.', '_')}"
        yield f"unet.{path.replace('.to_', '.processor.to_').removesuffix('.0')}"
        return
    prefix = {"text_encoder": "lora_te1", "text_encoder_2": "lora_te2"}[model]
    yield f"{prefix}_{path.replace('.', '_')}"
    yield f"{model}.{path}"
