from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import (
    StableDiffusionXLPipeline,
)
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from diffusers.training_utils import compute_snr

from tasks.base_models.noise_schedule import noise_schedule
from tasks.buckets import Size
from tasks.jobs.sdxl import SdxlFinetuneConfig
from tests.worker.trainer.runs import Images, images, run_train, sdxl_config_of
from worker.trainer.base_model import load_scheduler
from worker.trainer.data.batches import Batch, Draw, SampleReader
from worker.trainer.data.inputs import latent_draws
from worker.trainer.export.safetensors_file import write_safetensors
from worker.trainer.families import take_text
from worker.trainer.model_cache import ModelCache
from worker.trainer.rng import StatelessRng
from worker.trainer.sdxl.denoising import min_snr_weight
from worker.trainer.sdxl.family import take_finetune_models
from worker.trainer.sdxl.finetune_recipe import SdxlFinetune
from worker.trainer.sdxl.models import load_noise_scheduler
from worker.trainer.tiny_models import build_tiny_sdxl

CPU = torch.device("cpu")


def pipeline_of(folder: Path) -> Any:
    pipeline: Any = StableDiffusionXLPipeline.from_pretrained(folder, add_watermarker=False)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def recipe_of(folder: Path, **options: Any) -> SdxlFinetune:
    config = sdxl_config_of("SDXL_FINETUNE", folder, **options)
    assert isinstance(config, SdxlFinetuneConfig)
    models = take_finetune_models(config, CPU, ModelCache())
    return SdxlFinetune(config, models)


def batch_of(size: Size, samples: tuple[int, ...], **fields: Any) -> Batch:
    generator = torch.Generator().manual_seed(size.width)
    values = torch.rand((len(samples), 3, size.height, size.width), generator=generator) * 2 - 1
    captions = tuple(f"a photo of cat {sample}" for sample in samples)
    ids = torch.tensor([[100.0, 90, 2, 3, size.height, size.width]] * len(samples))
    given = {"weights": torch.ones(len(samples)), "time_ids": ids, "pixels": values, **fields}
    draws = (*latent_draws(4), Draw("uniform", "timestep"))
    made = {draw.purpose: draw.make(StatelessRng(7), 2, samples, size) for draw in draws}
    return Batch(2, samples, captions, draws=made, **given)


def expected_losses(folder: Path, batch: Batch, prediction: str, gamma: float | None) -> Any:
    """Return the losses by diffusers' own functions, one sample after the other."""
    pipeline = pipeline_of(folder)
    scheduler = DDPMScheduler.from_config(pipeline.scheduler.config, prediction_type=prediction)
    draws = StatelessRng(7)
    losses = []
    for row, sample in enumerate(batch.samples):
        assert batch.pixels is not None
        embeds, _, pooled, _ = pipeline.encode_prompt(
            batch.captions[row], device=CPU, do_classifier_free_guidance=False
        )
        distribution = pipeline.vae.encode(batch.pixels[row : row + 1]).latent_dist
        shape = tuple(distribution.mean.shape[1:])
        eps, noise = (draws.normal(shape, name, 2, sample)[None] for name in ("vae", "noise"))
        z = (distribution.mean + distribution.std * eps) * pipeline.vae.config.scaling_factor
        t = (draws.uniform((), "timestep", 2, sample) * 1000).long().reshape(1)
        predicted = pipeline.unet(
            scheduler.add_noise(z, noise, t),
            t,
            encoder_hidden_states=embeds,
            added_cond_kwargs={
                "text_embeds": pooled,
                "time_ids": batch.time_ids[row : row + 1],
            },
        ).sample
        velocity = prediction == "v_prediction"
        target = scheduler.get_velocity(z, noise, t) if velocity else noise
        loss = torch.nn.functional.mse_loss(predicted, target)
        if gamma is not None:
            alpha = scheduler.alphas_cumprod[t]
            snr = alpha / (1 - alpha)
            loss = loss * (snr.clamp(max=gamma) / (snr + 1 if velocity else snr))[0]
        losses.append(loss)
    return torch.stack(losses)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("gamma", [None, 5.0])
@torch.no_grad()
def test_loss_equals_that_of_diffusers_own_functions(
    tiny_sdxl: Path, prediction: str, gamma: float | None
) -> None:
    recipe = recipe_of(tiny_sdxl, prediction_type=prediction, min_snr_gamma=gamma)
    batch = batch_of(Size(96, 64), (3, 1))
    expected = expected_losses(tiny_sdxl, batch, prediction, gamma)
    torch.testing.assert_close(recipe.losses(batch), expected, rtol=1e-5, atol=0)


@torch.no_grad()
def test_prediction_type_defaults_to_the_base_models(
    tmp_path: Path,
) -> None:
    model = build_tiny_sdxl(tmp_path / "velocity", prediction_type="v_prediction")
    batch = batch_of(Size(64, 64), (3,))
    own = recipe_of(model).losses(batch)
    assert torch.equal(own, recipe_of(model, prediction_type="v_prediction").losses(batch))
    assert not torch.equal(own, recipe_of(model, prediction_type="epsilon").losses(batch))


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@torch.no_grad()
def test_keys_of_a_single_file_decide_targets_and_noise_levels(
    tiny_sdxl: Path, tmp_path: Path
) -> None:
    file = tmp_path / "vpred.safetensors"
    write_safetensors(file, {"v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)})
    config = sdxl_config_of("SDXL_LORA", file, single_file_config=str(tiny_sdxl))
    scheduler: Any = load_noise_scheduler(config)
    assert scheduler.config["prediction_type"] == "v_prediction"
    assert scheduler.alphas_cumprod[-1] == 0
    sampler = load_scheduler(config, **noise_schedule(config).scheduler_values)
    assert sampler.config["prediction_type"] == "v_prediction"
    sampler.set_timesteps(30)
    assert sampler.timesteps[0] == 999
    # The last level is pure noise: the velocity there is minus the image.
    z, noise, t = torch.full((1, 4, 2, 2), 2.0), torch.ones((1, 4, 2, 2)), torch.tensor([999])
    assert torch.equal(scheduler.add_noise(z, noise, t), noise)
    assert torch.equal(scheduler.get_velocity(z, noise, t), -z)
    snr: torch.Tensor = compute_snr(scheduler, t)  # type: ignore[no-untyped-call]
    assert min_snr_weight(snr, 5.0, velocity=True).tolist() == [0.0]


@torch.no_grad()
def test_embeddings_equal_the_pipelines_bit_for_bit(tiny_sdxl: Path) -> None:
    captions = ["a photo of the cat", "red"]
    text = take_text(sdxl_config_of("SDXL_LORA", tiny_sdxl), CPU, ModelCache()).encode(captions)
    prompt_embeds, _, pooled, _ = pipeline_of(tiny_sdxl).encode_prompt(
        captions, device=CPU, do_classifier_free_guidance=False
    )
    assert torch.equal(text.prompt_embeds, prompt_embeds)
    assert torch.equal(text.pooled, pooled)
    assert text.prompt_embeds.shape == (2, 77, 80)


def test_min_snr_weights_as_in_the_paper() -> None:
    snr = torch.tensor([0.0, 1.0, 5.0, 100.0])
    weight = min_snr_weight(snr, 5.0, velocity=False)
    torch.testing.assert_close(weight, torch.tensor([1.0, 1.0, 1.0, 0.05]))
    weight = min_snr_weight(snr, 5.0, velocity=True)
    torch.testing.assert_close(weight, torch.tensor([0.0, 0.5, 5 / 6, 5 / 101]))


@torch.no_grad()
def test_mask_weights_the_loss_in_latent_space(tiny_sdxl: Path) -> None:
    recipe = recipe_of(tiny_sdxl)
    whole = recipe.losses(batch_of(Size(64, 64), (3,)))
    halves = []
    for side in range(2):
        mask = torch.zeros(1, 1, 8, 8)
        mask[..., 4 * side : 4 * side + 4] = 1
        halves.append(recipe.losses(batch_of(Size(64, 64), (3,), masks=mask)))
    assert min(halves) > 0
    torch.testing.assert_close(halves[0] + halves[1], whole)


@torch.no_grad()
def test_sample_weight_multiplies_its_loss(tiny_sdxl: Path) -> None:
    recipe = recipe_of(tiny_sdxl)
    plain = recipe.losses(batch_of(Size(64, 64), (3, 1)))
    weights = torch.tensor([1.0, 0.25])
    weighed = recipe.losses(batch_of(Size(64, 64), (3, 1), weights=weights))
    torch.testing.assert_close(weighed, plain * weights)


@pytest.mark.parametrize("centre", [True, False])
def test_unet_gets_the_original_size_and_the_crop(
    tiny_sdxl: Path, tmp_path: Path, centre: bool
) -> None:
    data = images(tmp_path, sizes=[(96, 48)])
    config = sdxl_config_of("SDXL_LORA", tiny_sdxl, loader={"center_crop": centre})
    reader = SampleReader(data.store.url, data.dataset, config, None, StatelessRng(1))
    height, width, top, left, *target = reader.read(0, (0,)).time_ids[0].tolist()
    # Resized to 128 x 64 and cropped to 64 x 64.
    assert [height, width, top, *target] == [48, 96, 0, 64, 64]
    assert left == 32 if centre else 0 <= left <= 64


def test_dreambooth_sets_have_their_caption_and_weight(tiny_sdxl: Path, data: Images) -> None:
    folder = {"type": "IMAGE_DIR_DATASET", "dataset_dir": "/unused"}
    loader = {
        "type": "DREAMBOOTH_SD_DATA_LOADER",
        "instance_caption": "a photo of sks cat",
        "instance_dataset": folder,
        "class_caption": "a photo of cat",
        "class_dataset": folder,
        "class_data_loss_weight": 0.5,
        "resolution": 64,
    }
    config = sdxl_config_of("SDXL_LORA", tiny_sdxl, data_loader=loader)
    samples = [
        sample.model_copy(update={"part": number % 2})
        for number, sample in enumerate(data.dataset.samples)
    ]
    dataset = data.dataset.model_copy(update={"samples": tuple(samples)})
    batch = SampleReader(data.store.url, dataset, config, None, StatelessRng(1)).read(0, (0, 1))
    assert batch.captions == ("a photo of sks cat", "a photo of cat")
    assert batch.weights.tolist() == [1.0, 0.5]


def test_nan_stops_the_run(tiny_sdxl: Path, data: Images) -> None:
    rate = {"optimizer_type": "AdamW", "learning_rate": 1e30}
    config = sdxl_config_of("SDXL_FINETUNE", tiny_sdxl, optimizer=rate)
    with pytest.raises(Exception, match="is NaN or infinity"):
        run_train(data, config)
