from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.worker.trainer.runs import config_of, sdxl_config_of
from worker.trainer.compute.gradient_checkpointing import checkpoint_blocks
from worker.trainer.flux.models import take_models as take_flux
from worker.trainer.model_cache import ModelCache
from worker.trainer.sdxl.family import take_frozen_models
from worker.trainer.sdxl.models import unet_blocks

CPU = torch.device("cpu")


def recomputed(model: Any, parts: dict[str, torch.nn.Module], inputs: dict[str, Any]) -> set[str]:
    """Return the parts of a model that the backward pass calls again."""
    calls: Counter[str] = Counter()
    for name, part in parts.items():
        part.register_forward_pre_hook(lambda *_, name=name: calls.update([name]))
    first = next(iter(inputs.values())).requires_grad_()
    model(**inputs, return_dict=False)[0].sum().backward()
    assert first.grad is not None
    return {name for name, count in calls.items() if count == 2}


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [
        (False, set()),
        (0, set()),
        (1, {"double"}),
        (2, {"double", "single"}),
        ("auto", {"double", "single"}),
        (True, {"double", "single"}),
    ],
)
def test_fluxs_first_blocks_are_recomputed(
    tiny_flux: Path, chosen: bool | int | str, expected: set[str]
) -> None:
    config = config_of(tiny_flux, gradient_checkpointing=chosen)
    model = take_flux(config, CPU, ModelCache()).denoiser
    blocks = {"double": model.transformer_blocks[0], "single": model.single_transformer_blocks[0]}
    checkpoint_blocks(model, list(blocks.values()), config)
    assert recomputed(model, blocks, flux_inputs(model)) == expected


def flux_inputs(model: Any) -> dict[str, Any]:
    return {
        "hidden_states": torch.randn(1, 4, 64),
        "encoder_hidden_states": torch.randn(1, 3, model.config["joint_attention_dim"]),
        "pooled_projections": torch.randn(1, model.config["pooled_projection_dim"]),
        "timestep": torch.ones(1),
        "img_ids": torch.zeros(4, 3),
        "txt_ids": torch.zeros(3, 3),
        "guidance": torch.ones(1),
    }


def test_dropout_repeats_its_draws(tiny_flux: Path) -> None:
    model: Any = take_flux(config_of(tiny_flux), CPU, ModelCache()).denoiser.train()
    model.transformer_blocks[0].attn.to_out[1].p = 0.5
    inputs = flux_inputs(model)

    def gradient(chosen: bool) -> torch.Tensor:
        blocks = [*model.transformer_blocks, *model.single_transformer_blocks]
        checkpoint_blocks(model, blocks, config_of(tiny_flux, gradient_checkpointing=chosen))
        torch.manual_seed(1)
        hidden: torch.Tensor = inputs["hidden_states"].clone().requires_grad_()
        model(**{**inputs, "hidden_states": hidden}, return_dict=False)[0].sum().backward()
        assert hidden.grad is not None
        return hidden.grad

    assert torch.equal(gradient(chosen=False), gradient(chosen=True))


@pytest.mark.parametrize(("chosen", "blocks"), [(0, 0), (1, 1), (4, 4), (True, 7)])
def test_the_unets_first_blocks_are_recomputed(
    tiny_sdxl: Path, chosen: bool | int, blocks: int
) -> None:
    config = sdxl_config_of("SDXL_LORA", tiny_sdxl, gradient_checkpointing=chosen)
    unet = take_frozen_models(config, CPU, ModelCache()).denoiser
    checkpoint_blocks(unet, unet_blocks(unet), config)
    parts = {
        f"{number} {path}": part
        for number, block in enumerate(unet_blocks(unet))
        for path, part in block.named_modules()
        if type(part).__name__ in ("ResnetBlock2D", "BasicTransformerBlock")
    }
    text_width = unet.config["projection_class_embeddings_input_dim"] - 6 * 8
    inputs = {
        "sample": torch.randn(1, 4, 8, 8),
        "timestep": torch.ones(1),
        "encoder_hidden_states": torch.randn(1, 3, unet.config["cross_attention_dim"]),
        "added_cond_kwargs": {
            "text_embeds": torch.randn(1, text_width),
            "time_ids": torch.ones(1, 6),
        },
    }
    # diffusers never recomputes the middle block's first ResNet.
    first = {name for name in parts if int(name[0]) < blocks} - {"3 resnets.0"}
    assert recomputed(unet, parts, inputs) == first
