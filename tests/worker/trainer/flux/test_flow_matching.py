import math
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.pipelines.flux.pipeline_flux import FluxPipeline
from PIL import Image

from tasks.buckets import Size
from tasks.data.crops import CENTRE, cropped, resized_to_cover
from tests.worker.trainer.runs import config_of
from worker.trainer.data.batches import Batch, Draw
from worker.trainer.data.images import pixels
from worker.trainer.data.inputs import latent_draws
from worker.trainer.families import take_text
from worker.trainer.flux.flow_matching import min_snr_weight, sigmas
from worker.trainer.flux.lora_recipe import FluxLora
from worker.trainer.flux.models import take_models
from worker.trainer.model_cache import ModelCache
from worker.trainer.rng import StatelessRng

CPU = torch.device("cpu")


def pipeline_of(folder: Path) -> Any:
    pipeline: Any = FluxPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def recipe_of(folder: Path, **options: Any) -> FluxLora:
    config = config_of(folder, **options)
    models = take_models(config, CPU, ModelCache())
    recipe = FluxLora(config, models, StatelessRng(config.seed))
    generator = torch.Generator().manual_seed(3)
    for name, parameter in recipe.parameters.items():
        if name.endswith("lora_B"):
            parameter.data.normal_(std=0.1, generator=generator)
    return recipe


def batch_of(size: Size, samples: tuple[int, ...], epoch: int = 2) -> Batch:
    generator = torch.Generator().manual_seed(size.width)
    values = torch.rand((len(samples), 3, size.height, size.width), generator=generator) * 2 - 1
    captions = tuple(f"a photo of cat {sample}" for sample in samples)
    ones, ids = torch.ones(len(samples)), torch.zeros(len(samples), 6)
    draws = (*latent_draws(16), Draw("normal", "sigma"))
    made = {draw.purpose: draw.make(StatelessRng(7), epoch, samples, size) for draw in draws}
    return Batch(epoch, samples, captions, ones, ids, pixels=values, draws=made)


@pytest.mark.parametrize("size", [Size(64, 64), Size(96, 32)])
@pytest.mark.parametrize("samples", [(3,), (3, 1)])
def test_loss_equals_that_of_diffusers_own_functions(
    tiny_flux: Path, size: Size, samples: tuple[int, ...]
) -> None:
    recipe = recipe_of(tiny_flux, guidance_scale=3.5)
    batch = batch_of(size, samples)
    with torch.no_grad():
        losses = recipe.losses(batch)

    pipeline = pipeline_of(tiny_flux)
    draws = StatelessRng(7)
    expected = []
    for row, sample in enumerate(samples):
        assert batch.pixels is not None
        prompt_embeds, pooled, text_ids = pipeline.encode_prompt(
            batch.captions[row], max_sequence_length=32
        )
        with torch.no_grad():
            distribution = pipeline.vae.encode(batch.pixels[row : row + 1]).latent_dist
        shape = (1, 16, size.height // 8, size.width // 8)
        eps, noise = (
            draws.normal(shape[1:], purpose, 2, sample)[None] for purpose in ("vae", "noise")
        )
        z = distribution.mean + distribution.std * eps
        z = (z - pipeline.vae.config.shift_factor) * pipeline.vae.config.scaling_factor
        t = torch.sigmoid(draws.normal((), "sigma", 2, sample)).reshape(1)
        t = 3.0 * t / (1 + 2.0 * t)
        x = pipeline._pack_latents((1 - t) * z + t * noise, *shape)
        ids = pipeline._prepare_latent_image_ids(1, shape[2] // 2, shape[3] // 2, CPU, x.dtype)
        with torch.no_grad():
            predicted = recipe._transformer(
                hidden_states=x,
                timestep=t,
                guidance=torch.tensor([3.5]),
                pooled_projections=pooled,
                encoder_hidden_states=prompt_embeds,
                txt_ids=text_ids,
                img_ids=ids,
            ).sample
        unpacked = pipeline._unpack_latents(predicted, size.height, size.width, 8)
        expected.append(torch.nn.functional.mse_loss(unpacked, noise - z))
    torch.testing.assert_close(losses, torch.stack(expected), rtol=1e-5, atol=0)


def test_embeddings_equal_fluxpipelines_bit_for_bit(tiny_flux: Path) -> None:
    captions = ["a photo of the cat", "red"]
    with torch.no_grad():  # as FluxPipeline itself calls it
        text = take_text(config_of(tiny_flux), CPU, ModelCache()).encode(captions)
        prompt_embeds, pooled, _ = pipeline_of(tiny_flux).encode_prompt(
            captions, max_sequence_length=32
        )
    assert torch.equal(text.prompt_embeds, prompt_embeds)
    assert torch.equal(text.pooled, pooled)


@torch.no_grad()
def test_token_lengths_reach_both_tokenizers(tiny_flux: Path) -> None:
    long = "a cat " * 60
    short = config_of(tiny_flux, clip_tokenizer_max_length=5, t5_tokenizer_max_length=8)
    text = take_text(short, CPU, ModelCache()).encode([long])
    full = take_text(config_of(tiny_flux), CPU, ModelCache()).encode([long])
    assert text.prompt_embeds.shape == (1, 8, 32)
    assert full.prompt_embeds.shape == (1, 32, 32)
    assert not torch.equal(text.pooled, full.pooled)


def test_noise_level_of_a_sample_depends_on_no_batch(tiny_flux: Path) -> None:
    recipe = recipe_of(tiny_flux)
    batch = batch_of(Size(64, 64), (5, 8))
    assert batch.pixels is not None
    with torch.no_grad():
        together = recipe.losses(batch)
        alone = []
        for row in range(2):
            one = slice(row, row + 1)
            single = Batch(
                2,
                batch.samples[one],
                batch.captions[one],
                batch.weights[one],
                batch.time_ids[one],
                pixels=batch.pixels[one],
                draws=batch_of(Size(64, 64), batch.samples[one]).draws,
            )
            alone.append(recipe.losses(single))
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-5, atol=0)


def test_shift_sampler_shifts_towards_noise(tiny_flux: Path) -> None:
    normal = torch.randn(1000, generator=torch.Generator().manual_seed(0))

    def drawn(**options: Any) -> torch.Tensor:
        return sigmas(config_of(tiny_flux, **options), normal, patches=4096)

    unshifted = drawn(discrete_flow_shift=1.0)
    assert torch.equal(unshifted, torch.sigmoid(normal))
    assert torch.allclose(drawn(), 3 * unshifted / (1 + 2 * unshifted))
    assert drawn(sigmoid_scale=2.0).std() > drawn().std()
    assert torch.equal(drawn(timestep_sampler="uniform"), normal)
    # FLUX's shift for 1024 x 1024 pixels.
    shift = math.exp(1.15)
    by_size = drawn(timestep_sampler="resolution_shift")
    torch.testing.assert_close(by_size, shift * unshifted / (1 + (shift - 1) * unshifted))


def test_min_snr_weights_as_in_the_paper() -> None:
    sigma = torch.tensor([0.0, 0.1, 0.5, 0.9])
    weight = min_snr_weight(sigma, gamma=5.0)
    # snr is 81, 1 and 1/81.
    expected = torch.tensor([0.0, 5 / 82, 1 / 2, (1 / 81) / (1 / 81 + 1)])
    torch.testing.assert_close(weight, expected)


def test_image_is_resized_cropped_and_mirrored() -> None:
    image = Image.new("RGB", (200, 100), (255, 0, 0))
    image.paste((0, 0, 255), (100, 0, 200, 100))
    fitted = resized_to_cover(image, Size(64, 64))
    assert fitted.size == (128, 64)
    plain = pixels(cropped(fitted, Size(64, 64), CENTRE), flipped=False)
    flipped = pixels(cropped(fitted, Size(64, 64), CENTRE), flipped=True)
    assert plain.shape == (3, 64, 64)
    assert plain.max() == 1.0
    assert plain.min() == -1.0
    assert torch.equal(plain.flip(-1), flipped)
    left = pixels(cropped(fitted, Size(64, 64), (0.0, 0.0)), flipped=False)
    assert left[0].min() > 0.9
