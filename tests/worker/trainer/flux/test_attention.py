from pathlib import Path
from typing import Any

import pytest
import torch

from tests.worker.trainer.runs import config_of
from worker.trainer.flux.attention import replace_attention
from worker.trainer.flux.models import take_models
from worker.trainer.model_cache import ModelCache

pytestmark = pytest.mark.filterwarnings(
    "ignore:Mismatch dtype between input and weight:UserWarning"
)


@pytest.fixture
def flux(tiny_flux: Path) -> Any:
    return take_models(config_of(tiny_flux), torch.device("cpu"), ModelCache()).denoiser


def outputs(flux: Any, *, half: bool = False) -> tuple[torch.Tensor, ...]:
    """The output of the model, and the gradients of its inputs."""
    draws = torch.Generator().manual_seed(3)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=draws).to(flux.dtype).requires_grad_()

    config = flux.config
    image, text = normal(2, 12, config["in_channels"]), normal(2, 5, config["joint_attention_dim"])
    pooled = normal(2, config["pooled_projection_dim"])
    positions = torch.stack(torch.meshgrid(torch.arange(3), torch.arange(4), indexing="ij"), dim=-1)
    ids = torch.cat([torch.zeros(12, 1), positions.reshape(12, 2)], dim=1)
    times, guidance = torch.tensor([0.3, 0.7]), torch.ones(2)
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        [found] = flux(
            image, text, pooled, times, ids, torch.zeros(5, 3), guidance, return_dict=False
        )
    return found.detach(), *torch.autograd.grad(found.float().square().sum(), (image, text, pooled))


def test_attention_computes_what_diffusers_does(flux: Any) -> None:
    expected = outputs(flux)
    restore = replace_attention(flux)
    for ours, theirs in zip(outputs(flux), expected, strict=True):
        torch.testing.assert_close(ours, theirs)
    restore()
    assert all(torch.equal(*pair) for pair in zip(outputs(flux), expected, strict=True))


def test_in_half_precision_it_is_as_near_to_float64(flux: Any) -> None:
    def distances() -> list[float]:
        pairs = zip(outputs(flux, half=True), exact, strict=True)
        return [float((ours - theirs).norm() / theirs.norm()) for ours, theirs in pairs]

    exact = outputs(flux.double())
    flux.float()
    before = distances()
    replace_attention(flux)
    assert distances() == pytest.approx(before, rel=0.05)
