"""LoRA files in the two forms that all families write, and the names of CLIP's weights in files.

Weights are named by their model and diffusers' path there
(``unet.mid_block.resnets.0.conv1.lora_A``): A is (r, in) or (r, in, kh, kw), B is (out, r) or
(out, r, 1, 1). A LoRA changes its layer by alpha / r * B A.
"""

from collections.abc import Mapping

import torch

Weights = Mapping[str, torch.Tensor]

# transformers 5 has these at the top of a CLIPTextModel; transformers 4 and every published file
# have them in a ``text_model``.
_FLATTENED = ("embeddings.", "encoder.", "final_layer_norm.")


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


def kohya_tensors(
    weights: Weights, alpha: float, prefixes: Mapping[str, str]
) -> dict[str, torch.Tensor]:
    """Return the tensors of the ``kohya`` form: flattened names, and an alpha for each layer.

    Args:
        weights: The weights.
        alpha: The alpha of all layers.
        prefixes: How the names of a model's layers begin (``unet``: ``lora_unet``).
    """
    tensors = {}
    for name, weight in weights.items():
        model, _, path = name.partition(".")
        layer, _, matrix = path.rpartition(".")
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
