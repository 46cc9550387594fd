"""LoRA layers in the library's models, and their files.

``PatchedPeft`` replaces the ``peft`` that a pipeline's module imports.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from tasks.jobs.flux_lora import FluxLoraConfig
from tasks.jobs.sdxl import SdxlLoraConfig
from worker.trainer.flux.export import write_lora
from worker.trainer.flux.lora_recipe import lora_regex
from worker.trainer.invoke.run import Run
from worker.trainer.lora import initial_value, lora_weight_name
from worker.trainer.rng import StatelessRng
from worker.trainer.sdxl.export import sdxl_entries, write_sdxl_lora
from worker.trainer.sdxl.models import load_noise_scheduler

LoraConfig = FluxLoraConfig | SdxlLoraConfig
# The library's alpha, whatever the rank.
_FIXED_ALPHA = 1.0
# The transformer's own last layer, which has no LoRA in the kohya form.
_LAST_LAYER = "transformer.proj_out."


class PatchedPeft:
    """A ``peft`` that makes LoRA layers as engine ``diffusers`` does.

    Args:
        peft: The real one.
        config: The job's config.
        targets: Regular expressions of the layers with a LoRA, by model; for models without one
            the library's own targets hold.
        run: Has the patches and the models.
        rng: Draws the initial values of LoRAs.
    """

    def __init__(
        self,
        peft: Any,
        config: LoraConfig,
        targets: Mapping[str, str],
        run: Run,
        rng: StatelessRng,
    ) -> None:
        self._peft = peft
        self._config = config
        self._targets = targets
        self._run = run
        self._rng = rng

    def __getattr__(self, name: str) -> Any:
        return getattr(self._peft, name)

    def get_peft_model(self, model: Any, lora: Any) -> Any:
        """Add LoRA layers to a model."""
        [name] = [name for name, known in self._run.models.items() if known is model]
        if "lora_alpha" in self._run.patches:
            lora.lora_alpha = self._config.lora_alpha()
        if "lora_targets" in self._run.patches and name in self._targets:
            lora.target_modules = self._targets[name]
        adapted = self._peft.get_peft_model(model, lora)
        for path, parameter in model.named_parameters():
            if not parameter.requires_grad:
                continue
            if "float32_weights" in self._run.patches:
                parameter.data = parameter.data.float()
            if "lora_start" in self._run.patches:
                weight = lora_weight_name(name, path.removesuffix(".default.weight"))
                parameter.data = initial_value(weight, parameter, self._rng)
        return adapted


def flux_lora_targets(config: FluxLoraConfig) -> dict[str, str]:
    """Return the regular expression of the transformer's layers with a LoRA, by model."""
    return {"transformer": lora_regex(config)}


def write_flux_lora_file(
    path: Path,
    weights: Mapping[str, torch.Tensor],
    config: FluxLoraConfig,
    run: Run,
    metadata: Mapping[str, str],
) -> None:
    """Write a FLUX LoRA as engine ``diffusers`` does.

    Args:
        path: The file.
        weights: The weights by name.
        config: The job's config.
        run: Has the patches and the models.
        metadata: The entries that all files of the run have.
    """
    transformer = run.models.get("transformer")
    guided = transformer is not None and bool(transformer.config["guidance_embeds"])
    scale = _alpha(config, run.patches) / config.lora_rank_dim
    config = config.model_copy(update={"lora_scale": scale})
    kept = {it: weight for it, weight in weights.items() if not it.startswith(_LAST_LAYER)}
    write_lora(path, kept, config, metadata, guided=guided)


def write_sdxl_lora_file(
    path: Path,
    weights: Mapping[str, torch.Tensor],
    config: SdxlLoraConfig,
    run: Run,
    metadata: Mapping[str, str],
) -> None:
    """Write an SDXL LoRA as engine ``diffusers`` does; see ``write_flux_lora_file``."""
    entries = {**metadata, **sdxl_entries(load_noise_scheduler(config), "lora")}
    alpha = _alpha(config, run.patches)
    write_sdxl_lora(path, weights, config, alpha, entries, run.models["unet"])


def _alpha(config: LoraConfig, patches: frozenset[str]) -> float:
    """Return the alpha of a run's layers."""
    return config.lora_alpha() if "lora_alpha" in patches else _FIXED_ALPHA
