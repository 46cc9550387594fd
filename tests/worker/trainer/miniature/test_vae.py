"""The latents of the miniature models' VAEs."""

from typing import Any

import pytest
import torch

from worker.trainer.miniature.flux import new_flux_vae
from worker.trainer.miniature.vae import narrow_latents, scale_latents


@pytest.fixture
def vae() -> Any:
    torch.manual_seed(1)
    return new_flux_vae().train(False)


@torch.no_grad()
def test_latents_get_flux_mean_and_variance(vae: Any) -> None:
    x = torch.rand(8, 3, 64, 64) * 2 - 1
    first = vae.decoder.conv_in
    before = first(vae.encode(x).latent_dist.mode())
    scale_latents(vae, x)
    raw = vae.encode(x).latent_dist.mode()
    z = (raw - vae.config.shift_factor) * vae.config.scaling_factor
    assert z.mean((0, 2, 3)) == pytest.approx(torch.zeros(16), abs=1e-3)
    assert z.std((0, 2, 3)) == pytest.approx(torch.ones(16), abs=1e-3)
    # The decoder gets what it got, but for the edges, whose padding has another meaning.
    assert first(raw)[..., 1:-1, 1:-1] == pytest.approx(before[..., 1:-1, 1:-1], abs=1e-4)


@torch.no_grad()
def test_narrow_latents_have_their_means_and_next_to_no_variance(vae: Any) -> None:
    x = torch.rand(2, 3, 64, 64) * 2 - 1
    before = vae.encode(x).latent_dist
    narrow_latents(vae)
    after = vae.encode(x).latent_dist
    assert torch.equal(after.mean, before.mean)
    assert after.std == pytest.approx(torch.full_like(after.std, 0.0067), abs=1e-4)
