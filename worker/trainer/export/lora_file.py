"""LoRA files in the forms that families write, and the names of CLIP's weights in files.

Weights are named by their model and diffusers' path there
(``unet.mid_block.resnets.0.conv1.lora_A``): A is (r, in) or (r, in, kh, kw), B is (out, r) or
(out, r, 1, 1). A LoRA changes its layer by alpha / r * B A.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path

import torch

from worker.trainer.export.metadata import MODEL_DIGESTS
from worker.trainer.export.safetensors_file import header_bytes, raw_bytes, write_safetensors

Weights = Mapping[str, torch.Tensor]

# transformers 5 has these at the top of a CLIPTextModel; transformers 4 and every published file
# have them in a ``text_model``.
_FLATTENED = ("embeddings.", "encoder.", "final_layer_norm.")
# sd-scripts' old hash reads these bytes.
_LEGACY_START, _LEGACY_END = 0x100000, 0x110000
_ATTENTION = re.compile(r"^(unet\..+\.attn[12])\.to_(q|k|v|out)(?:\.0)?\.lora_([AB])\.weight$")
_OLD_ENDS = {"A": "down", "B": "up"}


def clip_path(path: str) -> str:
    """Return the name of a CLIP weight in files: ``text_model.encoder.layers.0.mlp.fc1.weight``."""
    return f"text_model.{path}" if path.startswith(_FLATTENED) else path


def peft_tensors(weights: Weights, alpha: float) -> dict[str, torch.Tensor]:
    """Return the tensors of the ``invoke_peft`` form: diffusers' names, B A is the whole change.

    The factor alpha / r is folded into the weights: InvokeAI reads no alpha from such a file, and
    diffusers reads one from adapter metadata only.
    """
    tensors = {}
    for name, weight in weights.items():
        is_down = name.endswith("lora_A")
        down, up = split_scale(alpha / (weight.shape[0] if is_down else weight.shape[1]))
        tensors[f"{name}.weight"] = weight.detach() * (down if is_down else up)
    return tensors


def diffusers_old_tensors(weights: Weights, alpha: float) -> dict[str, torch.Tensor]:
    """Return the tensors of the ``diffusers_old`` form: the ``invoke_peft`` form's, renamed.

    Of a UNet's attention, ComfyUI reads only the names that diffusers had before peft; diffusers
    reads these only if none of the UNet's names is peft's.
    """
    tensors = {}
    for name, tensor in peft_tensors(weights, alpha).items():
        if match := _ATTENTION.match(name):
            name = f"{match[1]}.processor.to_{match[2]}_lora.{_OLD_ENDS[match[3]]}.weight"
        elif name.startswith("unet."):
            name = name.replace(".lora_A.", ".lora.down.").replace(".lora_B.", ".lora.up.")
        tensors[name] = tensor
    return tensors


def kohya_tensors(
    weights: Weights,
    alpha: float,
    prefixes: Mapping[str, str],
    renamed: Mapping[str, str] | None = None,
) -> dict[str, torch.Tensor]:
    """Return the tensors of the ``kohya`` form: flattened names, and an alpha for each layer.

    Args:
        weights: The weights.
        alpha: The alpha of all layers.
        prefixes: How the names of a model's layers begin (``unet``: ``lora_unet``).
        renamed: The paths of layers that have another one in the file.
    """
    tensors = {}
    for name, weight in weights.items():
        model, _, path = name.partition(".")
        layer, _, matrix = path.rpartition(".")
        layer = (renamed or {}).get(layer, layer)
        key = f"{prefixes[model]}_{layer.replace('.', '_')}"
        end = "lora_down" if matrix == "lora_A" else "lora_up"
        tensors[f"{key}.{end}.weight"] = weight.detach()
        tensors[f"{key}.alpha"] = torch.tensor(alpha, dtype=torch.float32)
    return tensors


def split_scale(scale: float) -> tuple[float, float]:
    """Split a scale into factors of A and B that are as near to each other as halving gets.

    diffusers' reader of kohya files does the same (``_convert_kohya_flux_lora_to_diffusers`` in
    ``diffusers/loaders/lora_conversion_utils.py``), and so gets the same numbers from both forms.
    """
    down, up = scale, 1.0
    while down * 2 < up:
        down *= 2
        up /= 2
    return down, up


def write_kohya_file(
    path: Path,
    tensors: Mapping[str, torch.Tensor],
    metadata: Mapping[str, str],
    *,
    module: str,
    rank: int,
    alpha: float,
) -> None:
    """Write the ``kohya`` form with sd-scripts' entries of a network, and its hashes.

    Args:
        path: The file.
        tensors: What ``kohya_tensors`` returned.
        metadata: The other entries for the header.
        module: The module of sd-scripts that loads such a file.
        rank: The rank of all layers that are not fused.
        alpha: Their alpha.
    """
    convolutions = any(tensor.shape[2:].numel() > 1 for tensor in tensors.values())
    arguments = {"conv_dim": str(rank), "conv_alpha": str(alpha)} if convolutions else {}
    entries = {
        **metadata,
        "ss_network_module": module,
        "ss_network_dim": str(rank),
        "ss_network_alpha": str(alpha),
        "ss_network_args": json.dumps(arguments),
    }
    entries["sshs_legacy_hash"] = _legacy_hash(tensors, entries)
    digests = {**MODEL_DIGESTS, "sshs_model_hash": "{}"}
    write_safetensors(path, tensors, entries, digests=digests)


def write_diffusers_file(
    path: Path,
    tensors: Mapping[str, torch.Tensor],
    metadata: Mapping[str, str],
    weights: Weights,
) -> None:
    """Write a form with diffusers' names, with its entry of the adapters and none of kohya's.

    Args:
        path: The file.
        tensors: What ``peft_tensors`` or ``diffusers_old_tensors`` returned.
        metadata: The other entries for the header.
        weights: The weights of which the tensors were made.
    """
    entries = {name: text for name, text in metadata.items() if not name.startswith("ss_")}
    entries["lora_adapter_metadata"] = json.dumps(_adapters(weights), sort_keys=True)
    write_safetensors(path, tensors, entries, digests=MODEL_DIGESTS)


def _adapters(weights: Weights) -> dict[str, object]:
    """Return peft's config of each model's LoRA, as diffusers names its options in a header."""
    layers: dict[str, list[str]] = {}
    ranks: dict[str, int] = {}
    for name, weight in sorted(weights.items()):
        model, _, path = name.partition(".")
        layer, _, matrix = path.rpartition(".")
        if matrix == "lora_A":
            # Whole paths but for this part, which transformers 5 has not: peft compares ends.
            layers.setdefault(model, []).append(layer.removeprefix("text_model."))
            ranks[model] = weight.shape[0]
    # alpha / r is folded into the weights.
    found: dict[str, object] = {}
    for model, targets in layers.items():
        rank = ranks[model]
        options = {"r": rank, "lora_alpha": rank, "target_modules": targets}
        found |= {f"{model}.{option}": value for option, value in options.items()}
    return found


def _legacy_hash(tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> str:
    """Return sd-scripts' old hash: some bytes of a file with no other entries than its own."""
    header = header_bytes(tensors, {k: v for k, v in metadata.items() if k.startswith("ss_")})
    window, place = bytearray(header[_LEGACY_START:_LEGACY_END]), len(header)
    for _, tensor in sorted(tensors.items()):
        end = place + tensor.numel() * tensor.itemsize
        if place < _LEGACY_END and end > _LEGACY_START:
            window += raw_bytes(tensor)[max(_LEGACY_START - place, 0) : _LEGACY_END - place]
        place = end
    return hashlib.sha256(window).hexdigest()[:8]
