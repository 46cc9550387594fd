from pathlib import Path
from typing import Any

import pytest
import torch

from tests.worker.trainer.runs import config_of
from worker.trainer.flux.lora_recipe import FluxLora
from worker.trainer.flux.models import take_models
from worker.trainer.model_cache import ModelCache
from worker.trainer.norm_casts import cast_norms_once
from worker.trainer.rng import StatelessRng


@pytest.mark.parametrize("half", [True, False])
def test_norms_have_the_precision_of_the_layers_behind(tiny_flux: Path, half: bool) -> None:
    model: Any = take_models(config_of(tiny_flux), torch.device("cpu"), ModelCache()).denoiser
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


def test_close_removes_the_casts(tiny_flux: Path) -> None:
    config = config_of(tiny_flux)
    models = take_models(config, torch.device("cpu"), ModelCache())
    recipe = FluxLora(config, models, StatelessRng(7))
    parts = list(models.denoiser.modules())
    assert any(part._forward_hooks or part._forward_pre_hooks for part in parts)
    recipe.close()
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in parts)
