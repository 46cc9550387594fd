"""The tensors of base models' parts: names and shapes by diffusers' layout and by the original one.

Both are computed from a part's ``config.json``, so that a file can be checked by its header alone,
before a GPU or torch is needed. The trainer reads files by the same tables.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

# More than any model has: a damaged config.json must not fill the memory.
_MAX_LAYERS = 1000

Shape = tuple[int, ...]
Shapes = dict[str, Shape]
Config = Mapping[str, Any]


@dataclass(frozen=True)
class Source:
    """Where a file has a tensor.

    Attributes:
        name: The tensor's name in the file.
        rows: The rows that are taken of it, first and after last, in this order; empty for all.
        transposed: Whether the file has it transposed.
    """

    name: str
    rows: tuple[tuple[int, int], ...] = ()
    transposed: bool = False


Sources = dict[str, Source]
Naming = Callable[[Shapes], Sources]


def flux_transformer_shapes(config: Config) -> Shapes:
    """Return the tensors of a FluxTransformer2DModel."""
    head = config.get("attention_head_dim", 128)
    width = config.get("num_attention_heads", 24) * head
    channels = config.get("in_channels", 64)
    embedded = {"timestep_embedder": 256, "text_embedder": config.get("pooled_projection_dim", 768)}
    if config.get("guidance_embeds", False):
        embedded["guidance_embedder"] = 256
    shapes = {
        **_linear("x_embedder", width, channels),
        **_linear("context_embedder", width, config.get("joint_attention_dim", 4096)),
        **_linear("norm_out.linear", 2 * width, width),
        **_linear("proj_out", config.get("out_channels") or channels, width),
    }
    for name, inputs in embedded.items():
        shapes |= _linear(f"time_text_embed.{name}.linear_1", width, inputs)
        shapes |= _linear(f"time_text_embed.{name}.linear_2", width, width)
    attention = ("to_q", "to_k", "to_v")
    added = ("to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
    double = {
        **_linears(width, width, (f"attn.{name}" for name in (*attention, *added))),
        **_linears(6 * width, width, ("norm1.linear", "norm1_context.linear")),
        **_linears(4 * width, width, ("ff.net.0.proj", "ff_context.net.0.proj")),
        **_linears(width, 4 * width, ("ff.net.2", "ff_context.net.2")),
    }
    norms = ("norm_q", "norm_k", "norm_added_q", "norm_added_k")
    double |= {f"attn.{name}.weight": (head,) for name in norms}
    single = {
        **_linears(width, width, (f"attn.{name}" for name in attention)),
        **_linear("norm.linear", 3 * width, width),
        **_linear("proj_mlp", 4 * width, width),
        **_linear("proj_out", width, 5 * width),
        **{f"attn.{name}.weight": (head,) for name in norms[:2]},
    }
    shapes |= _repeated("transformer_blocks", config.get("num_layers", 19), double)
    return shapes | _repeated(
        "single_transformer_blocks", config.get("num_single_layers", 38), single
    )


def clip_shapes(config: Config) -> Shapes:
    """Return the tensors of a CLIPTextModel, by their names in published files."""
    width, inner = config.get("hidden_size", 512), config.get("intermediate_size", 2048)
    attention = ("q_proj", "k_proj", "v_proj", "out_proj")
    layer = {
        **_linears(width, width, (f"self_attn.{name}" for name in attention)),
        **_linear("mlp.fc1", inner, width),
        **_linear("mlp.fc2", width, inner),
        **_norm("layer_norm1", width),
        **_norm("layer_norm2", width),
    }
    tables = "text_model.embeddings"
    positions = config.get("max_position_embeddings", 77)
    return {
        f"{tables}.token_embedding.weight": (config.get("vocab_size", 49408), width),
        f"{tables}.position_embedding.weight": (positions, width),
        **_repeated("text_model.encoder.layers", config.get("num_hidden_layers", 12), layer),
        **_norm("text_model.final_layer_norm", width),
    }


def clip_with_projection_shapes(config: Config) -> Shapes:
    """Return the tensors of a CLIPTextModelWithProjection."""
    projection = (config.get("projection_dim", 512), config.get("hidden_size", 512))
    return {**clip_shapes(config), "text_projection.weight": projection}


def t5_shapes(config: Config) -> Shapes:
    """Return the tensors of the encoder of a T5 v1.1."""
    width, inner = config.get("d_model", 512), config.get("d_ff", 2048)
    heads = config.get("num_heads", 8)
    attended = heads * config.get("d_kv", 64)
    block: Shapes = {
        **{f"layer.0.SelfAttention.{name}.weight": (attended, width) for name in "qkv"},
        "layer.0.SelfAttention.o.weight": (width, attended),
        "layer.0.layer_norm.weight": (width,),
        "layer.1.DenseReluDense.wi_0.weight": (inner, width),
        "layer.1.DenseReluDense.wi_1.weight": (inner, width),
        "layer.1.DenseReluDense.wo.weight": (width, inner),
        "layer.1.layer_norm.weight": (width,),
    }
    bias = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    return {
        "shared.weight": (config.get("vocab_size", 32128), width),
        bias: (config.get("relative_attention_num_buckets", 32), heads),
        **_repeated("encoder.block", config.get("num_layers", 6), block),
        "encoder.final_layer_norm.weight": (width,),
    }


def vae_shapes(config: Config) -> Shapes:
    """Return the tensors of an AutoencoderKL."""
    widths = tuple(config.get("block_out_channels", (64,)))
    layers, latent = _count(config.get("layers_per_block", 1)), config.get("latent_channels", 4)
    shapes = {
        **_conv("encoder.conv_in", widths[0], config.get("in_channels", 3)),
        **_conv("encoder.conv_out", 2 * latent, widths[-1]),
        **_norm("encoder.conv_norm_out", widths[-1]),
        **_conv("decoder.conv_in", widths[-1], latent),
        **_conv("decoder.conv_out", config.get("out_channels", 3), widths[0]),
        **_norm("decoder.conv_norm_out", widths[0]),
    }
    if config.get("use_quant_conv", True):
        shapes |= _conv("quant_conv", 2 * latent, 2 * latent, 1)
    if config.get("use_post_quant_conv", True):
        shapes |= _conv("post_quant_conv", latent, latent, 1)
    has_attention = config.get("mid_block_add_attention", True)
    for side in ("encoder", "decoder"):
        shapes |= _vae_middle(f"{side}.mid_block", widths[-1], has_attention)
    return {
        **shapes,
        **_vae_blocks("encoder.down_blocks", "downsamplers", widths, widths[0], layers),
        **_vae_blocks("decoder.up_blocks", "upsamplers", widths[::-1], widths[-1], layers + 1),
    }


def _vae_middle(name: str, width: int, has_attention: bool) -> Shapes:
    shapes = {
        **_resnet(f"{name}.resnets.0", width, width),
        **_resnet(f"{name}.resnets.1", width, width),
    }
    if not has_attention:
        return shapes
    attention = f"{name}.attentions.0"
    layers = (f"{attention}.{layer}" for layer in ("to_q", "to_k", "to_v", "to_out.0"))
    return {
        **shapes,
        **_norm(f"{attention}.group_norm", width),
        **_linears(width, width, layers),
    }


def _vae_blocks(
    folder: str, samplers: str, widths: tuple[int, ...], before: int, layers: int
) -> Shapes:
    shapes: Shapes = {}
    for block, width in enumerate(widths):
        for layer in range(layers):
            shapes |= _resnet(f"{folder}.{block}.resnets.{layer}", width, before)
            before = width
        if block < len(widths) - 1:
            shapes |= _conv(f"{folder}.{block}.{samplers}.0.conv", width, width)
    return shapes


def unet_shapes(config: Config) -> Shapes:
    """Return the tensors of SDXL's UNet2DConditionModel."""
    widths = tuple(config.get("block_out_channels", (320, 640, 1280, 1280)))
    layers, time = _count(config.get("layers_per_block", 2)), 4 * widths[0]
    depths = config.get("transformer_layers_per_block", 1)
    depths = tuple(depths) if isinstance(depths, list | tuple) else (depths,) * len(widths)
    text = config.get("cross_attention_dim", 1280)
    added = config.get("projection_class_embeddings_input_dim")
    shapes = {
        **_conv("conv_in", widths[0], config.get("in_channels", 4)),
        **_conv("conv_out", config.get("out_channels", 4), widths[0]),
        **_norm("conv_norm_out", widths[0]),
        **_linear("time_embedding.linear_1", time, widths[0]),
        **_linear("time_embedding.linear_2", time, time),
        **_linear("add_embedding.linear_1", time, added or 0),
        **_linear("add_embedding.linear_2", time, time),
        **_resnet("mid_block.resnets.0", widths[-1], widths[-1], time),
        **_resnet("mid_block.resnets.1", widths[-1], widths[-1], time),
        **_spatial_transformer("mid_block.attentions.0", widths[-1], text, depths[-1]),
    }
    skipped, before = [widths[0]], widths[0]
    for block, kind in enumerate(config.get("down_block_types", ())):
        name, width = f"down_blocks.{block}", widths[block]
        for layer in range(layers):
            shapes |= _resnet(f"{name}.resnets.{layer}", width, before, time)
            if kind.startswith("CrossAttn"):
                attention = f"{name}.attentions.{layer}"
                shapes |= _spatial_transformer(attention, width, text, depths[block])
            before = width
            skipped.append(width)
        if block < len(widths) - 1:
            shapes |= _conv(f"{name}.downsamplers.0.conv", width, width)
            skipped.append(width)
    for block, kind in enumerate(config.get("up_block_types", ())):
        name, width, depth = f"up_blocks.{block}", widths[-1 - block], depths[-1 - block]
        for layer in range(layers + 1):
            inputs = before + skipped.pop()
            shapes |= _resnet(f"{name}.resnets.{layer}", width, inputs, time)
            if kind.startswith("CrossAttn"):
                attention = f"{name}.attentions.{layer}"
                shapes |= _spatial_transformer(attention, width, text, depth)
            before = width
        if block < len(widths) - 1:
            shapes |= _conv(f"{name}.upsamplers.0.conv", width, width)
    return shapes


def same_names(shapes: Shapes) -> Sources:
    """Return the sources of a file by diffusers' own names."""
    return {name: Source(name) for name in shapes}


def file_shapes(sources: Sources, shapes: Shapes) -> Shapes:
    """Return the tensors that a file has by these sources."""
    found: Shapes = {}
    for target, source in sources.items():
        shape = shapes[target]
        if source.transposed:
            shape = shape[::-1]
        if source.rows:
            height = max(stop for _, stop in source.rows)
            shape = (max(height, found.get(source.name, (0,))[0]), *shape[1:])
        found[source.name] = shape
    return found


_FLUX_TOP = {
    "x_embedder.": "img_in.",
    "context_embedder.": "txt_in.",
    "time_text_embed.timestep_embedder.linear_1.": "time_in.in_layer.",
    "time_text_embed.timestep_embedder.linear_2.": "time_in.out_layer.",
    "time_text_embed.text_embedder.linear_1.": "vector_in.in_layer.",
    "time_text_embed.text_embedder.linear_2.": "vector_in.out_layer.",
    "time_text_embed.guidance_embedder.linear_1.": "guidance_in.in_layer.",
    "time_text_embed.guidance_embedder.linear_2.": "guidance_in.out_layer.",
    "norm_out.linear.": "final_layer.adaLN_modulation.1.",
    "proj_out.": "final_layer.linear.",
}
_FLUX_DOUBLE = {
    "norm1.linear.": "img_mod.lin.",
    "norm1_context.linear.": "txt_mod.lin.",
    "attn.to_q.": "img_attn.qkv.",
    "attn.to_k.": "img_attn.qkv.",
    "attn.to_v.": "img_attn.qkv.",
    "attn.add_q_proj.": "txt_attn.qkv.",
    "attn.add_k_proj.": "txt_attn.qkv.",
    "attn.add_v_proj.": "txt_attn.qkv.",
    "attn.norm_q.weight": "img_attn.norm.query_norm.scale",
    "attn.norm_k.weight": "img_attn.norm.key_norm.scale",
    "attn.norm_added_q.weight": "txt_attn.norm.query_norm.scale",
    "attn.norm_added_k.weight": "txt_attn.norm.key_norm.scale",
    "attn.to_out.0.": "img_attn.proj.",
    "attn.to_add_out.": "txt_attn.proj.",
    "ff.net.0.proj.": "img_mlp.0.",
    "ff.net.2.": "img_mlp.2.",
    "ff_context.net.0.proj.": "txt_mlp.0.",
    "ff_context.net.2.": "txt_mlp.2.",
}
_FLUX_SINGLE = {
    "norm.linear.": "modulation.lin.",
    "attn.to_q.": "linear1.",
    "attn.to_k.": "linear1.",
    "attn.to_v.": "linear1.",
    "proj_mlp.": "linear1.",
    "attn.norm_q.weight": "norm.query_norm.scale",
    "attn.norm_k.weight": "norm.key_norm.scale",
    "proj_out.": "linear2.",
}
FLUX_BLOCKS = {
    "transformer_blocks": ("double_blocks", _FLUX_DOUBLE),
    "single_transformer_blocks": ("single_blocks", _FLUX_SINGLE),
}
"""The folders of FLUX's blocks: the original's, and how its names in a block begin."""
_FLUX_BLOCK = re.compile(r"(transformer_blocks|single_transformer_blocks)\.(\d+)\.(.*)")
# The place of a layer in a fused one, counted in widths.
_FUSED = {"to_q": 0, "to_k": 1, "to_v": 2, "add_q_proj": 0, "add_k_proj": 1, "add_v_proj": 2}


def original_flux_transformer(shapes: Shapes) -> Sources:
    """Return the sources of a file by Black Forest Labs' names, which ComfyUI keeps."""
    width = shapes["x_embedder.bias"][0]
    sources = {}
    for name in shapes:
        if (match := _FLUX_BLOCK.match(name)) is None:
            # The original has the shift first, diffusers the scale.
            swapped = ((width, 2 * width), (0, width)) if name.startswith("norm_out.") else ()
            sources[name] = Source(_renamed(name, _FLUX_TOP), swapped)
            continue
        folder, starts = FLUX_BLOCKS[match[1]]
        layer = match[3].removeprefix("attn.").rpartition(".")[0]
        rows: tuple[tuple[int, int], ...] = ()
        if layer in _FUSED:
            rows = ((_FUSED[layer] * width, (_FUSED[layer] + 1) * width),)
        elif layer == "proj_mlp":
            rows = ((3 * width, 7 * width),)
        sources[name] = Source(f"{folder}.{match[2]}.{_renamed(match[3], starts)}", rows)
    return sources


_UNET_ENDS = {
    "conv_in.": "input_blocks.0.0.",
    "time_embedding.linear_1.": "time_embed.0.",
    "time_embedding.linear_2.": "time_embed.2.",
    "add_embedding.linear_1.": "label_emb.0.0.",
    "add_embedding.linear_2.": "label_emb.0.2.",
    "mid_block.resnets.0.": "middle_block.0.",
    "mid_block.attentions.0.": "middle_block.1.",
    "mid_block.resnets.1.": "middle_block.2.",
    "conv_norm_out.": "out.0.",
    "conv_out.": "out.2.",
}
_RESNET = {
    "norm1.": "in_layers.0.",
    "conv1.": "in_layers.2.",
    "time_emb_proj.": "emb_layers.1.",
    "norm2.": "out_layers.0.",
    "conv2.": "out_layers.3.",
    "conv_shortcut.": "skip_connection.",
}


def original_unet(shapes: Shapes) -> Sources:
    """Return the sources of a UNet by the names of Stability AI's generative-models."""
    prefixes = {**_UNET_ENDS, **_numbered_blocks(shapes)}
    # The longest first: resnets.10 begins with resnets.1, too.
    ordered = sorted(prefixes, key=len, reverse=True)
    sources = {}
    for name in shapes:
        prefix = next(prefix for prefix in ordered if name.startswith(prefix))
        rest = name.removeprefix(prefix)
        if ".resnets." in prefix:
            rest = _renamed(rest, _RESNET)
        sources[name] = Source(prefixes[prefix] + rest)
    return sources


def _numbered_blocks(names: Iterable[str]) -> dict[str, str]:
    """Map the prefixes of down and up blocks to the original's, which numbers all layers."""
    names = set(names)
    found: dict[str, str] = {}
    place = 1
    for block, layers in _layers(names, "down_blocks"):
        for layer in range(layers):
            found[f"{block}.resnets.{layer}."] = f"input_blocks.{place}.0."
            found[f"{block}.attentions.{layer}."] = f"input_blocks.{place}.1."
            place += 1
        if f"{block}.downsamplers.0.conv.weight" in names:
            found[f"{block}.downsamplers.0.conv."] = f"input_blocks.{place}.0.op."
            place += 1
    place = 0
    for block, layers in _layers(names, "up_blocks"):
        for layer in range(layers):
            found[f"{block}.resnets.{layer}."] = f"output_blocks.{place}.0."
            found[f"{block}.attentions.{layer}."] = f"output_blocks.{place}.1."
            place += 1
        # An upsampler is the last part of its block's last layer.
        after = 2 if any(name.startswith(f"{block}.attentions.") for name in names) else 1
        found[f"{block}.upsamplers.0."] = f"output_blocks.{place - 1}.{after}."
    return found


def _layers(names: Iterable[str], kind: str) -> list[tuple[str, int]]:
    """Return each block of a kind with the number of its resnets."""
    pattern = re.compile(rf"({kind}\.(\d+))\.resnets\.(\d+)\.")
    found: dict[tuple[int, str], int] = {}
    for match in filter(None, map(pattern.match, names)):
        block = int(match[2]), match[1]
        found[block] = max(found.get(block, 0), int(match[3]) + 1)
    return [(name, found[number, name]) for number, name in sorted(found)]


_VAE = (
    (r"\.mid_block\.resnets\.0\.", ".mid.block_1."),
    (r"\.mid_block\.resnets\.1\.", ".mid.block_2."),
    (r"\.mid_block\.attentions\.0\.", ".mid.attn_1."),
    (r"\.down_blocks\.(\d+)\.resnets\.(\d+)\.", r".down.\1.block.\2."),
    (r"\.down_blocks\.(\d+)\.downsamplers\.0\.", r".down.\1.downsample."),
    (r"\.up_blocks\.(\d+)\.resnets\.(\d+)\.", r".up.\1.block.\2."),
    (r"\.up_blocks\.(\d+)\.upsamplers\.0\.", r".up.\1.upsample."),
    (r"\.conv_shortcut\.", ".nin_shortcut."),
    (r"\.conv_norm_out\.", ".norm_out."),
    (r"\.group_norm\.", ".norm."),
    (r"\.to_([qkv])\.", r".\1."),
    (r"\.to_out\.0\.", ".proj_out."),
)
_OLDER_VAE = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


def original_vae(shapes: Shapes) -> Sources:
    """Return the sources of a VAE by the names of latent diffusion, which FLUX's keeps."""
    names = [name.removeprefix("decoder.") for name in shapes]
    last = len(_layers(names, "up_blocks")) - 1
    sources = {}
    for name in shapes:
        original = name
        for pattern, replacement in _VAE:
            original = re.sub(pattern, replacement, original)
        # The decoder's blocks are numbered from its end.
        original = re.sub(
            r"^decoder\.up\.(\d+)\.", lambda m: f"decoder.up.{last - int(m[1])}.", original
        )
        sources[name] = Source(original)
    return sources


def older_vae(shapes: Shapes) -> Sources:
    """Return the sources of a VAE by diffusers' names of before 2023."""
    pattern = re.compile(r"\.attentions\.0\.(to_q|to_k|to_v|to_out\.0)\.")
    return {
        name: Source(pattern.sub(lambda m: f".attentions.0.{_OLDER_VAE[m[1]]}.", name))
        for name in shapes
    }


def flattened_clip(shapes: Shapes) -> Sources:
    """Return the sources of a CLIP by the names that transformers 5 gives it."""
    return {name: Source(name.removeprefix("text_model.")) for name in shapes}


_OPENCLIP = (
    ("text_model.embeddings.token_embedding.", "token_embedding."),
    ("text_model.embeddings.position_embedding.weight", "positional_embedding"),
    ("text_model.encoder.layers.", "transformer.resblocks."),
    ("text_model.final_layer_norm.", "ln_final."),
    (".layer_norm1.", ".ln_1."),
    (".layer_norm2.", ".ln_2."),
    (".mlp.fc1.", ".mlp.c_fc."),
    (".mlp.fc2.", ".mlp.c_proj."),
    (".self_attn.", ".attn."),
)
_IN_PROJECTION = re.compile(r"\.([qkv])_proj\.(weight|bias)$")


def openclip(shapes: Shapes) -> Sources:
    """Return the sources of a CLIP by OpenCLIP's names: q, k, v fused, projection transposed."""
    sources = {}
    for name, shape in shapes.items():
        if name == "text_projection.weight":
            sources[name] = Source("text_projection", transposed=True)
            continue
        original = name
        for part, replacement in _OPENCLIP:
            original = original.replace(part, replacement)
        rows: tuple[tuple[int, int], ...] = ()
        if match := _IN_PROJECTION.search(original):
            place = "qkv".index(match[1])
            rows = ((place * shape[0], (place + 1) * shape[0]),)
            original = _IN_PROJECTION.sub(r".in_proj_\2", original)
        sources[name] = Source(original, rows)
    return sources


def _renamed(name: str, starts: Mapping[str, str]) -> str:
    start = next(start for start in starts if name.startswith(start))
    return starts[start] + name.removeprefix(start)


def _repeated(folder: str, count: int, block: Shapes) -> Shapes:
    places = range(_count(count))
    return {f"{folder}.{n}.{name}": shape for n in places for name, shape in block.items()}


def _count(value: int) -> int:
    if not 0 <= value <= _MAX_LAYERS:
        raise ValueError(f"{value} layers")
    return value


def _linear(name: str, outputs: int, inputs: int) -> Shapes:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def _linears(outputs: int, inputs: int, names: Iterable[str]) -> Shapes:
    return {key: s for name in names for key, s in _linear(name, outputs, inputs).items()}


def _norm(name: str, width: int) -> Shapes:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def _conv(name: str, outputs: int, inputs: int, size: int = 3) -> Shapes:
    return {f"{name}.weight": (outputs, inputs, size, size), f"{name}.bias": (outputs,)}


def _resnet(name: str, outputs: int, inputs: int, time: int | None = None) -> Shapes:
    shapes = {
        **_norm(f"{name}.norm1", inputs),
        **_conv(f"{name}.conv1", outputs, inputs),
        **_norm(f"{name}.norm2", outputs),
        **_conv(f"{name}.conv2", outputs, outputs),
    }
    if time is not None:
        shapes |= _linear(f"{name}.time_emb_proj", outputs, time)
    return shapes | (
        _conv(f"{name}.conv_shortcut", outputs, inputs, 1) if inputs != outputs else {}
    )


def _spatial_transformer(name: str, width: int, text: int, depth: int) -> Shapes:
    block: Shapes = {
        **{f"attn{n}.to_q.weight": (width, width) for n in (1, 2)},
        **{f"attn1.to_{x}.weight": (width, width) for x in "kv"},
        **{f"attn2.to_{x}.weight": (width, text) for x in "kv"},
        **_linears(width, width, ("attn1.to_out.0", "attn2.to_out.0")),
        **_linear("ff.net.0.proj", 8 * width, width),
        **_linear("ff.net.2", width, 4 * width),
        **{key: s for n in (1, 2, 3) for key, s in _norm(f"norm{n}", width).items()},
    }
    return {
        **_norm(f"{name}.norm", width),
        **_linears(width, width, (f"{name}.proj_in", f"{name}.proj_out")),
        **_repeated(f"{name}.transformer_blocks", depth, block),
    }
