from pathlib import Path
from typing import Any

import pytest
import torch

from tests.worker.trainer.runs import config_of, sdxl_config_of
from worker.trainer.compute.norm_casts import cast_norms_once
from worker.trainer.families import training_type
from worker.trainer.flux.models import take_models
from worker.trainer.model_cache import ModelCache
from worker.trainer.rng import StatelessRng

CPU = torch.device("cpu")


@pytest.mark.parametrize("half", [True, False])
def test_norms_have_the_precision_of_the_layers_behind(tiny_flux: Path, half: bool) -> None:
    model: Any = take_models(config_of(tiny_flux), CPU, ModelCache()).denoiser
    norm = model.single_transformer_blocks[0].norm
    x, emb = torch.randn(1, 4, model.inner_dim), torch.randn(1, model.inner_dim)

    @torch.no_grad()
    def output() -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            found: torch.Tensor = norm(x, emb=emb)[0]
        return found

    before = output()
    cast_norms_once(model)
    assert before.dtype == torch.float32
    assert output().dtype == (torch.bfloat16 if half else torch.float32)
    assert torch.equal(output(), before.to(output().dtype))


@pytest.mark.parametrize("half", [True, False])
def test_norms_of_a_unet_keep_their_weights_in_float32(tiny_sdxl: Path, half: bool) -> None:
    config = sdxl_config_of("SDXL_LORA", tiny_sdxl, weight_dtype="bfloat16" if half else "float32")
    model: Any = training_type(config).take_models(config, CPU, ModelCache()).denoiser
    [norm, *_] = [it for it in model.modules() if isinstance(it, torch.nn.LayerNorm)]
    before = norm.weight.clone()
    undo = cast_norms_once(model)
    assert norm.weight.dtype == torch.float32
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=half):
        found = norm(torch.randn(1, 4, *before.shape))
    assert found.dtype == before.dtype
    for restore in undo:
        restore()
    assert norm.weight.dtype == before.dtype
    assert torch.equal(norm.weight, before)


@pytest.mark.parametrize("kind", ["FLUX_LORA", "SDXL_LORA", "SDXL_TEXTUAL_INVERSION"])
def test_close_removes_the_casts(tiny_flux: Path, tiny_sdxl: Path, kind: str) -> None:
    is_flux = kind == "FLUX_LORA"
    config = config_of(tiny_flux) if is_flux else sdxl_config_of(kind, tiny_sdxl)
    found = training_type(config)
    models = found.take_models(config, CPU, ModelCache())
    recipe = found.new_recipe(config, models, StatelessRng(7))
    parts = list(models.denoiser.modules())
    assert any(part._forward_hooks or part._forward_pre_hooks for part in parts)
    recipe.close()
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in parts)
