"""LoRA layers in the library's models, and the file that they become.

Stands for the ``peft`` that a pipeline's module imports: what goes through is patched.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel

from tasks.jobs.flux_lora import FluxLoraConfig
from tasks.jobs.sdxl import SdxlLoraConfig
from worker.trainer.flux.lora_export import write_lora
from worker.trainer.flux.lora_recipe import lora_regex
from worker.trainer.invoke.run import Run
from worker.trainer.lora import lora_weight_name, start_of
from worker.trainer.rng import StatelessRng
from worker.trainer.sdxl.lora_recipe import write_sdxl_lora
from worker.trainer.sdxl.metadata import sdxl_metadata
from worker.trainer.sdxl.models import load_noise_scheduler

LoraConfig = FluxLoraConfig | SdxlLoraConfig
# In the library, whatever the rank.
_FIXED_ALPHA = 1.0
# The model's own last layer, which kohya's form has no LoRA for.
_LAST_LAYER = "transformer.proj_out."


class PatchedPeft:
    """A ``peft`` that gives LoRA layers as they should be.

    Args:
        peft: The real one.
        config: The job's.
        run: Says what is patched, and has the models.
        draws: Decide what LoRAs start from.
    """

    def __init__(self, peft: Any, config: LoraConfig, run: Run, draws: StatelessRng) -> None:
        self._peft = peft
        self._config = config
        self._run = run
        self._draws = draws

    def __getattr__(self, name: str) -> Any:
        return getattr(self._peft, name)

    def get_peft_model(self, model: Any, lora: Any) -> Any:
        """Give a model LoRA layers."""
        if "lora_alpha" in self._run.patches:
            lora.lora_alpha = self._config.lora_alpha()
        is_flux = isinstance(self._config, FluxLoraConfig) and isinstance(
            model, FluxTransformer2DModel
        )
        if "lora_targets" in self._run.patches and is_flux:
            lora.target_modules = lora_regex(self._config)  # type: ignore[arg-type]
        adapted = self._peft.get_peft_model(model, lora)
        [name] = [name for name, its in self._run.models.items() if its is model]
        for path, parameter in model.named_parameters():
            if not parameter.requires_grad:
                continue
            if "float32_weights" in self._run.patches:
                parameter.data = parameter.data.float()
            if "lora_start" in self._run.patches:
                parameter.data = start_of(lora_weight_name(name, path), parameter, self._draws)
        return adapted


def write_lora_file(
    path: Path,
    weights: Mapping[str, torch.Tensor],
    config: LoraConfig,
    *,
    name: str,
    step: int,
    guided: bool,
    alpha: float | None = None,
) -> None:
    """Write a LoRA as the engine ``diffusers`` does.

    Args:
        path: The file.
        weights: By name.
        config: The job's.
        name: The LoRA's title.
        step: Weight updates made.
        guided: Whether FLUX takes a guidance.
        alpha: Of its layers; None for the config's.
    """
    alpha = config.lora_alpha() if alpha is None else alpha
    if isinstance(config, SdxlLoraConfig):
        metadata = sdxl_metadata(config, load_noise_scheduler(config), name, step, "lora")
        write_sdxl_lora(path, weights, config, alpha, metadata)
        return
    config = config.model_copy(update={"lora_scale": alpha / config.lora_rank_dim})
    kept = {it: weight for it, weight in weights.items() if not it.startswith(_LAST_LAYER)}
    write_lora(path, kept, config, name=name, step=step, guided=guided)


def alpha_of(config: LoraConfig, patches: frozenset[str]) -> float:
    """The alpha that a run's layers have."""
    return config.lora_alpha() if "lora_alpha" in patches else _FIXED_ALPHA
