"""The miniature models that are shipped, and the scripts that made them."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from diffusers.pipelines.pipeline_utils import DiffusionPipeline

from benchmarks.miniature import Miniature
from worker.miniature.images import FLUX_FOLDER, SDXL_FOLDER, held_out_captions
from worker.trainer.miniature import flux, sdxl
from worker.trainer.miniature.training import Plan

pytestmark = pytest.mark.filterwarnings("ignore")  # of diffusers, while it loads and saves


@dataclass
class Script:
    """A model that is shipped, and what made it."""

    folder: Path
    denoiser: str
    plan: Plan
    train: Callable[[Path, Plan], None]


SCRIPTS = {
    "flux": Script(FLUX_FOLDER, "transformer", flux.PLAN, flux.train_flux),
    "sdxl": Script(SDXL_FOLDER, "unet", sdxl.PLAN, sdxl.train_sdxl),
}


@pytest.fixture(scope="module", params=SCRIPTS)
def script(request: pytest.FixtureRequest) -> Script:
    return SCRIPTS[request.param]


@pytest.fixture(scope="module")
def miniature(script: Script) -> Miniature:
    return Miniature(script.folder)


def test_the_model_draws_what_captions_say(miniature: Miniature) -> None:
    assert sum(miniature.draws_right(held_out_captions()[:20], range(20))) >= 17


def test_the_vae_reconstructs_images(miniature: Miniature) -> None:
    assert miniature.reconstruction_db(25) > 28


def test_the_model_is_small_and_says_how_it_was_made(script: Script) -> None:
    files = [path for path in script.folder.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 12_000_000
    made = json.loads((script.folder / "training.json").read_text("utf-8"))
    losses = made["losses"][script.denoiser]
    assert made["steps"] == losses[-1][0] == script.plan.steps
    assert made["vae_steps"] == script.plan.vae_steps
    assert losses[-1][1] < losses[0][1] / 2


def test_the_script_makes_a_model_that_can_be_read(script: Script, tmp_path: Path) -> None:
    script.train(tmp_path, Plan(vae_steps=2, steps=2, images=20))
    DiffusionPipeline.from_pretrained(tmp_path)
    configs = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*config.json"))
    assert len(configs) >= 6
    for name in configs:
        made, shipped = (json.loads((it / name).read_text()) for it in (tmp_path, script.folder))
        assert made == shipped, name


def test_the_model_has_narrow_latents(miniature: Miniature) -> None:
    vae = miniature.pipeline.vae
    last, channels = vae.encoder.conv_out, vae.config.latent_channels
    assert not last.weight[channels:].any()
    assert (last.bias[channels:] == -10).all()
