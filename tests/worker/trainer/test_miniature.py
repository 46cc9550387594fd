"""The miniature FLUX that is shipped, and the script that made it."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.pipelines.flux.pipeline_flux import FluxPipeline

from benchmarks.miniature import Miniature
from worker.miniature.images import FOLDER, held_out_captions
from worker.trainer.miniature import (
    Plan,
    miniature_vae,
    narrow_latents,
    scale_latents,
    train_miniature,
)

pytestmark = pytest.mark.filterwarnings("ignore")  # of diffusers, while it loads and saves


@pytest.fixture(scope="module")
def miniature() -> Miniature:
    return Miniature()


def test_the_model_draws_what_captions_say(miniature: Miniature) -> None:
    assert sum(miniature.draws_right(held_out_captions()[:20], range(20))) >= 17


def test_the_vae_reconstructs_images(miniature: Miniature) -> None:
    assert miniature.reconstruction_db(25) > 28


def test_the_model_is_small_and_says_how_it_was_made() -> None:
    files = [path for path in FOLDER.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 12_000_000
    made = json.loads((FOLDER / "training.json").read_text("utf-8"))
    assert made["steps"] == made["losses"]["transformer"][-1][0] == Plan().steps
    assert made["vae_steps"] == Plan().vae_steps
    assert made["losses"]["transformer"][-1][1] < made["losses"]["transformer"][0][1] / 2


def test_the_script_makes_a_model_that_can_be_read(tmp_path: Path) -> None:
    train_miniature(tmp_path, Plan(vae_steps=2, steps=2, images=20))
    FluxPipeline.from_pretrained(tmp_path)
    for part in ("transformer", "vae", "text_encoder", "text_encoder_2", "tokenizer"):
        name = f"{part}/{'tokenizer_' * part.startswith('tokenizer')}config.json"
        assert json.loads((tmp_path / name).read_text()) == json.loads((FOLDER / name).read_text())


@torch.no_grad()
def test_latents_get_flux_mean_and_variance() -> None:
    torch.manual_seed(1)
    vae: Any = miniature_vae().train(False)
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
def test_narrow_latents_have_their_means_and_next_to_no_variance() -> None:
    torch.manual_seed(1)
    vae: Any = miniature_vae().train(False)
    x = torch.rand(2, 3, 64, 64) * 2 - 1
    before = vae.encode(x).latent_dist
    narrow_latents(vae)
    after = vae.encode(x).latent_dist
    assert torch.equal(after.mean, before.mean)
    assert after.std == pytest.approx(torch.full_like(after.std, 0.0067), abs=1e-4)


def test_the_model_has_narrow_latents(miniature: Miniature) -> None:
    last = miniature.pipeline.vae.encoder.conv_out
    assert not last.weight[16:].any()
    assert (last.bias[16:] == -10).all()
