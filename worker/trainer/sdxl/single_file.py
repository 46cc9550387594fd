"""SDXL's weights by the original model's names, as a single-file checkpoint holds them."""

import re
from collections.abc import Collection, Mapping

import torch

Tensors = Mapping[str, torch.Tensor]


def single_file_tensors(
    unet: Tensors, text_encoder: Tensors, text_encoder_2: Tensors, vae: Tensors
) -> dict[str, torch.Tensor]:
    """Return the tensors of the whole model by the original model's names.

    Args:
        unet: The UNet's tensors by diffusers' names.
        text_encoder: The first text encoder's by their names in files.
        text_encoder_2: The second's.
        vae: The VAE's by diffusers' names.
    """
    tensors = {f"model.diffusion_model.{k}": v for k, v in _original_unet(unet).items()}
    clip = "conditioner.embedders.0.transformer"
    tensors |= {f"{clip}.{name}": tensor for name, tensor in text_encoder.items()}
    openclip = _openclip(text_encoder_2)
    tensors |= {f"conditioner.embedders.1.model.{k}": v for k, v in openclip.items()}
    tensors |= {f"first_stage_model.{k}": v for k, v in _original_vae(vae).items()}
    return {name: tensor.contiguous() for name, tensor in tensors.items()}


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


def original_layers(unet: torch.nn.Module) -> dict[str, str]:
    """Return the original model's path of each layer of a UNet, which may have LoRA layers."""
    names = [name for name, _ in unet.named_parameters() if ".lora_" not in name]
    original = _original_names([name.replace(".base_layer.", ".") for name in names])
    return {
        name.rpartition(".")[0]: renamed.rpartition(".")[0] for name, renamed in original.items()
    }


def _original_unet(unet: Tensors) -> dict[str, torch.Tensor]:
    return {original: unet[name] for name, original in _original_names(unet).items()}


def _original_names(unet: Collection[str]) -> dict[str, str]:
    """Return the original model's name of each of the UNet's weights."""
    prefixes = {**_UNET_ENDS, **_numbered_blocks(unet)}
    # The longest first: resnets.10 begins with resnets.1, too.
    ordered = sorted(prefixes, key=len, reverse=True)
    names = {}
    for name in unet:
        prefix = next(prefix for prefix in ordered if name.startswith(prefix))
        rest = name.removeprefix(prefix)
        if ".resnets." in prefix:
            part = next(part for part in _RESNET if rest.startswith(part))
            rest = _RESNET[part] + rest.removeprefix(part)
        names[name] = prefixes[prefix] + rest
    return names


def _numbered_blocks(unet: Collection[str]) -> dict[str, str]:
    """Map the prefixes of down and up blocks to the original's, which numbers all layers."""
    found: dict[str, str] = {}
    place = 1
    for block, layers in _layers(unet, "down_blocks"):
        for layer in range(layers):
            found[f"{block}.resnets.{layer}."] = f"input_blocks.{place}.0."
            found[f"{block}.attentions.{layer}."] = f"input_blocks.{place}.1."
            place += 1
        if f"{block}.downsamplers.0.conv.weight" in unet:
            found[f"{block}.downsamplers.0.conv."] = f"input_blocks.{place}.0.op."
            place += 1
    place = 0
    for block, layers in _layers(unet, "up_blocks"):
        for layer in range(layers):
            found[f"{block}.resnets.{layer}."] = f"output_blocks.{place}.0."
            found[f"{block}.attentions.{layer}."] = f"output_blocks.{place}.1."
            place += 1
        # An upsampler is the last part of its block's last layer.
        after = 2 if any(name.startswith(f"{block}.attentions.") for name in unet) else 1
        found[f"{block}.upsamplers.0."] = f"output_blocks.{place - 1}.{after}."
    return found


def _layers(tensors: Collection[str], kind: str) -> list[tuple[str, int]]:
    """Return each block of a kind with the number of its resnets."""
    pattern = re.compile(rf"({kind}\.(\d+))\.resnets\.(\d+)\.")
    found: dict[tuple[int, str], int] = {}
    for match in filter(None, map(pattern.match, tensors)):
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


def _original_vae(vae: Tensors) -> dict[str, torch.Tensor]:
    last = len(_layers([name.removeprefix("decoder.") for name in vae], "up_blocks")) - 1
    tensors = {}
    for name, tensor in vae.items():
        original = name
        for pattern, replacement in _VAE:
            original = re.sub(pattern, replacement, original)
        # The decoder's blocks are numbered from its end.
        original = re.sub(
            r"^decoder\.up\.(\d+)\.", lambda m: f"decoder.up.{last - int(m[1])}.", original
        )
        # In the original, attention is a 1x1 convolution.
        is_linear = ".attn_1." in original and tensor.ndim == 2
        tensors[original] = tensor[..., None, None] if is_linear else tensor
    return tensors


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


def _openclip(text_encoder: Tensors) -> dict[str, torch.Tensor]:
    """Return OpenCLIP's layout of the second text encoder: q, k, v fused, projection transposed."""
    tensors: dict[str, torch.Tensor] = {}
    for name, tensor in text_encoder.items():
        original = name
        for part, replacement in _OPENCLIP:
            original = original.replace(part, replacement)
        if name == "text_projection.weight":
            tensors["text_projection"] = tensor.T
        elif ".q_proj." in name:
            rows = [text_encoder[name.replace(".q_proj.", f".{x}_proj.")] for x in "qkv"]
            fused = re.sub(r"\.q_proj\.(weight|bias)$", r".in_proj_\1", original)
            tensors[fused] = torch.cat(rows)
        elif ".k_proj." not in name and ".v_proj." not in name:
            tensors[original] = tensor
    return tensors
