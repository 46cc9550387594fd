"""The published file of a FLUX LoRA, in two forms of the same weights.

``invoke_peft`` keeps diffusers' layer names. ``kohya`` has the original model's layers, where q, k
and v (and the MLP's input in single blocks) are one layer: n LoRAs of rank r become one of rank
n * r, block-diagonal in B, with n times the alpha, so that alpha / rank stays the same.
"""

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import torch

from tasks.base_models.layouts import FLUX_BLOCKS
from tasks.jobs.flux_lora import FluxLoraConfig
from worker.trainer.export import lora_file
from worker.trainer.export.lora_file import (
    Weights,
    peft_tensors,
    write_diffusers_file,
    write_kohya_file,
)

# FLUX's MLPs are four times as wide as its blocks.
_MLP_RATIO = 4


def write_lora(
    path: Path,
    weights: Weights,
    config: FluxLoraConfig,
    metadata: Mapping[str, str],
    *,
    guided: bool,
) -> None:
    """Write the LoRA in the config's form, the same bytes for the same weights.

    Args:
        path: The file.
        weights: The weights; see ``worker.trainer.export.lora_file``. CLIP's begin with
            ``text_encoder.``, the others with ``transformer.``.
        config: The run's config.
        metadata: The entries that all files of the run have.
        guided: Whether the base model takes a guidance, as FLUX.1-dev does.
    """
    rank, alpha = config.lora_rank_dim, config.lora_alpha()
    entries = {
        **metadata,
        "modelspec.architecture": f"flux-1-{'dev' if guided else 'schnell'}/lora",
        "modelspec.implementation": "https://github.com/black-forest-labs/flux",
        "ss_base_model_version": "flux1",
    }
    if config.lora_checkpoint_format == "kohya":
        module = "networks.lora_flux"
        tensors = kohya_tensors(weights, alpha)
        write_kohya_file(path, tensors, entries, module=module, rank=rank, alpha=alpha)
    else:
        write_diffusers_file(path, peft_tensors(weights, alpha), entries, weights)


def kohya_tensors(weights: Weights, alpha: float) -> dict[str, torch.Tensor]:
    """Return the tensors of the ``kohya`` form."""
    # The original model has CLIP's layers by the same names.
    clip = {name: weight for name, weight in weights.items() if name.startswith("text_encoder.")}
    tensors = lora_file.kohya_tensors(clip, alpha, {"text_encoder": "lora_te1"})
    weights = {
        name.removeprefix("transformer."): weight
        for name, weight in weights.items()
        if name.startswith("transformer.")
    }
    layers = {name.rpartition(".lora_")[0] for name in weights}
    blocks = sorted({tuple(layer.split(".", 2)[:2]) for layer in layers})
    for kind, number in blocks:
        folder, starts = FLUX_BLOCKS[kind]
        parts = defaultdict(list)
        for part, layer in starts.items():
            parts[layer].append(f"{kind}.{number}.{part}".removesuffix("."))
        for layer, names in parts.items():
            if layers.isdisjoint(names):
                continue
            down, up = _fused(weights, names)
            key = f"lora_unet_{folder}.{number}.{layer}".removesuffix(".").replace(".", "_")
            tensors[f"{key}.lora_down.weight"] = down
            tensors[f"{key}.lora_up.weight"] = up
            tensors[f"{key}.alpha"] = torch.tensor(alpha * len(names), dtype=torch.float32)
    return tensors


def _fused(weights: Weights, names: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Make one LoRA for n layers that are one in the original model.

    Returns:
        A (n * r, in) and B (sum of out, n * r), block-diagonal; layers without a LoRA have zeros
        in both.
    """
    trained = [name for name in names if f"{name}.lora_A" in weights]
    first = weights[f"{trained[0]}.lora_A"]
    rank, width = first.shape
    downs, ups = [], []
    for name in names:
        if name in trained:
            downs.append(weights[f"{name}.lora_A"].detach())
            ups.append(weights[f"{name}.lora_B"].detach())
        else:
            out = width * _MLP_RATIO if name.endswith("proj_mlp") else width
            downs.append(first.new_zeros(rank, width))
            ups.append(first.new_zeros(out, rank))
    up: torch.Tensor = torch.block_diag(*ups)  # type: ignore[no-untyped-call]
    return torch.cat(downs), up  # (n * r, in), (sum of out, n * r)
