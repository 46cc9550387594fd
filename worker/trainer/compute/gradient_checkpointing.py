"""Gradient checkpointing of a denoiser's first blocks, and of text encoders."""

from collections.abc import Sequence
from typing import Any

from torch.nn import Dropout, Module
from torch.utils.checkpoint import checkpoint

from tasks.jobs.pipeline import PipelineConfig


def checkpoint_blocks(model: Any, blocks: Sequence[Module], config: PipelineConfig) -> None:
    """Recompute a denoiser's first blocks in the backward pass, part by part.

    The first ones, since the last ones free their activations before any block is recomputed.

    Args:
        model: A diffusers model.
        blocks: Its blocks, in the order of the forward pass.
        config: The run's config.
    """
    count = config.checkpointed_blocks
    # A custom model may have more blocks than its type's usual ones.
    chosen = blocks if count == config.blocks else blocks[:count]
    recomputed = {part for block in chosen for part in block.modules()}
    draws = _has_dropout(model)

    def call(part: Module, *inputs: Any) -> Any:
        if part not in recomputed:
            return part(*inputs)
        # Reentrant checkpointing makes another graph, which adds gradients in another order.
        return checkpoint(part, *inputs, use_reentrant=False, preserve_rng_state=draws)

    if recomputed:
        model.enable_gradient_checkpointing(call)


def checkpoint_layers(model: Any, *, enabled: bool) -> None:
    """Recompute each layer of a text encoder in the backward pass, or stop that.

    Args:
        model: A transformers model.
        enabled: Whether to.
    """
    # Releases of transformers before 5.23 have the older name only.
    kind = "activation" if hasattr(model, "activation_checkpointing_enable") else "gradient"
    if enabled:
        # Reentrant checkpointing needs inputs with a gradient, which token ids lack.
        options = {"use_reentrant": False, "preserve_rng_state": _has_dropout(model)}
        getattr(model, f"{kind}_checkpointing_enable")(options)
    else:
        getattr(model, f"{kind}_checkpointing_disable")()


def _has_dropout(model: Any) -> bool:
    """Whether a model makes draws, which a recomputation must repeat; FLUX and SDXL make none."""
    # CLIP's attention takes its rate from the config, everything else is a module.
    rates = [part.p for part in model.modules() if isinstance(part, Dropout)]
    return any([getattr(model.config, "attention_dropout", 0.0), *rates])
