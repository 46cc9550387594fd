"""LoRA layers (Hu et al., 2021) on a frozen model: added, started and named."""

import math
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from peft import LoraConfig
from peft.tuners.tuners_utils import BaseTunerLayer

from worker.trainer.errors import TargetError
from worker.trainer.export.clip_names import clip_path
from worker.trainer.rng import StatelessRng


def add_lora(
    model: Any,
    name: str,
    targets: Sequence[str] | str,
    rank: int,
    alpha: float,
    draws: StatelessRng,
) -> dict[str, torch.nn.Parameter]:
    """Give a model LoRA layers, in float32.

    Args:
        model: A diffusers or transformers model, frozen.
        name: What it is called in the names of its weights (``unet``).
        targets: The ends of layers' names, or one regular expression for whole names.
        rank: Of the matrices.
        alpha: A LoRA's strength is alpha / rank.
        draws: Decide what A starts from.

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
    # peft fills the layers from the global generator first; fork it, so that nobody else's draws
    # depend on how many layers there are.
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        # Of merging into a quantised layer, which is never done here.
        warnings.filterwarnings("ignore", "TorchaoLoraLinear was instantiated")
        model.add_adapter(adapter)
    found: dict[str, torch.nn.Parameter] = {}
    for path, parameter in model.named_parameters():
        if ".lora_" not in path:
            continue
        weight = lora_weight_name(name, path)
        parameter.data = start_of(weight, parameter, draws)
        parameter.requires_grad_(True)
        found[weight] = parameter
    return dict(sorted(found.items()))


def remove_lora(model: Any) -> None:
    """Take the LoRA layers off again: the model is what it was."""
    for path, module in list(model.named_modules()):
        if isinstance(module, BaseTunerLayer):
            model.set_submodule(path, module.get_base_layer())
    # What tells diffusers and transformers that there are adapters.
    del model.peft_config
    model._hf_peft_config_loaded = False


def lora_weight_name(model: str, path: str) -> str:
    """A LoRA weight's name, by its model's and its path there (``....lora_A.default.weight``)."""
    path = path.removesuffix(".default.weight")
    return f"{model}.{clip_path(path) if model.startswith('text_encoder') else path}"


def start_of(name: str, parameter: torch.nn.Parameter, draws: StatelessRng) -> torch.Tensor:
    """B starts at zero, so that the first step trains the base model; A as a layer does."""
    if name.endswith("lora_B"):
        return torch.zeros(parameter.shape, device=parameter.device)
    bound = 1 / math.sqrt(parameter[0].numel())  # kaiming_uniform with a = sqrt(5), by fan-in
    values = draws.uniform(tuple(parameter.shape), "lora", name) * (2 * bound) - bound
    return values.to(parameter.device)
