"""LoRA layers (Hu et al., 2021) on a frozen model: added, initialized, named and removed."""

import math
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from peft import LoraConfig
from peft.tuners.tuners_utils import BaseTunerLayer

from worker.trainer.errors import TargetError
from worker.trainer.export.lora_file import clip_path
from worker.trainer.rng import StatelessRng


def add_lora(
    model: Any,
    name: str,
    targets: Sequence[str] | str,
    rank: int,
    alpha: float,
    rng: StatelessRng,
) -> dict[str, torch.nn.Parameter]:
    """Add LoRA layers to a model, in float32; it computes in float32 or under autocast.

    Args:
        model: A diffusers or transformers model, frozen.
        name: The model's name in the names of its weights (``unet``).
        targets: The ends of layers' names, or one regular expression for whole names.
        rank: The rank r of the matrices A (r, in) and B (out, r).
        alpha: A LoRA changes its layer by alpha / rank * B A.
        rng: Draws the initial A.

    Returns:
        The trained weights by name (``unet.mid_block.attentions.0.proj_in.lora_A``), sorted.

    Raises:
        TargetError: A target matches no layer.
    """
    if not isinstance(targets, str):
        layers = [path for path, module in model.named_modules() if hasattr(module, "weight")]
        unmatched = [
            t for t in targets if not any(f".{layer}".endswith(f".{t}") for layer in layers)
        ]
        if unmatched:
            raise TargetError(name, unmatched)
    adapter = LoraConfig(
        r=rank,
        lora_alpha=alpha,  # type: ignore[arg-type] # any number will do
        target_modules=targets if isinstance(targets, str) else list(targets),
        lora_dropout=0.0,
        bias="none",
    )
    # peft first fills the layers from the global generator; fork it, so that later draws do not
    # depend on the number of layers.
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        # It warns about merging into a quantized layer, which is never done here.
        warnings.filterwarnings("ignore", "TorchaoLoraLinear was instantiated")
        model.add_adapter(adapter)
    for module in model.modules():
        if isinstance(module, BaseTunerLayer):
            # Autocast computes in half precision: it would cast the input back.
            module.cast_input_dtype_enabled = False  # type: ignore[attr-defined] # LoRA's has it
    found: dict[str, torch.nn.Parameter] = {}
    for path, parameter in model.named_parameters():
        if ".lora_" not in path:
            continue
        weight = lora_weight_name(name, path)
        parameter.data = initial_value(weight, parameter, rng)
        parameter.requires_grad_(True)
        found[weight] = parameter
    return dict(sorted(found.items()))


def remove_lora(model: Any) -> None:
    """Remove the LoRA layers from a model."""
    for path, module in list(model.named_modules()):
        if isinstance(module, BaseTunerLayer):
            model.set_submodule(path, module.get_base_layer())
    # By these, diffusers and transformers know of adapters.
    del model.peft_config
    model._hf_peft_config_loaded = False


def lora_weight_name(model: str, path: str) -> str:
    """Return the name of a LoRA weight from its path (``....lora_A.default.weight``)."""
    path = path.removesuffix(".default.weight")
    return f"{model}.{clip_path(path) if model.startswith('text_encoder') else path}"


def initial_value(name: str, parameter: torch.nn.Parameter, rng: StatelessRng) -> torch.Tensor:
    """Return the initial value of a LoRA matrix.

    B is zero, so that training starts from the base model; A is drawn as PyTorch does for a linear
    layer (``kaiming_uniform`` with a = sqrt(5), by fan-in).
    """
    if name.endswith("lora_B"):
        return torch.zeros(parameter.shape, device=parameter.device)
    bound = 1 / math.sqrt(parameter[0].numel())
    values = rng.uniform(tuple(parameter.shape), "lora", name) * (2 * bound) - bound
    return values.to(parameter.device)
