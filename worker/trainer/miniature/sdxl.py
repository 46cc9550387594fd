"""Trains the miniature SDXL from nothing, on a CPU.

    python -P -m worker.trainer.miniature.sdxl FOLDER

As the miniature FLUX (``flux.py``), with SDXL's parts: a VAE of 4 channels, and a UNet that learns
to predict noise. For a tenth of the images it learns to draw without a caption, as guidance needs
it. FOLDER gets a StableDiffusionXLPipeline in bfloat16 and ``training.json``.
"""

from pathlib import Path
from typing import Any

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import (
    StableDiffusionXLPipeline,
)
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from worker.miniature.images import WORDS
from worker.trainer.miniature.corpus import Batch, Corpus, Kind
from worker.trainer.miniature.training import (
    SEED,
    Log,
    Plan,
    save_in_bfloat16,
    train_denoiser,
    train_from_command_line,
)
from worker.trainer.miniature.vae import miniature_vae, train_vae
from worker.trainer.tiny_models import clip_config, clip_tokenizer, new_unet, sdxl_scheduler

PLAN = Plan(vae_steps=2500, steps=6000)
# CLIP's tokenizer has a word whole if it merges none of its letters for a word before it.
_WORDS = tuple(dict.fromkeys(("crescent", "crimson", "bottom", "centre", *WORDS)))
# SDXL's own.
_CHANNELS, _SCALE = 4, 0.13025
# Different: diffusers distinguishes SDXL's encoders in a single file by their widths.
_WIDTHS = 64, 96
_TIME_WIDTH = 16
_TOKENS = 77
_PARTS = {
    Kind((128, 128), _TOKENS): 0.7,
    Kind((96, 160), _TOKENS): 0.08,
    Kind((160, 96), _TOKENS): 0.08,
    Kind((64, 64), _TOKENS): 0.14,
}
# Errors weigh as those of the image at this ratio of signal to noise, at most (min-SNR).
_MAX_SNR = 5.0
# Of the captions: as empty ones, and as the zeros that the pipeline gives for no caption at all.
_EMPTY, _ZEROS = 0.05, 0.05


def train_sdxl(folder: Path, plan: Plan) -> None:
    """Train the model, and save it."""
    torch.manual_seed(SEED)
    log = Log(folder / "training.json", plan)
    pipeline = new_pipeline()
    train_vae(pipeline.vae, plan.vae_steps, log)
    unet = pipeline.unet
    schedule = DDPMScheduler.from_config(pipeline.scheduler.config)

    def loss_of(batch: Batch) -> torch.Tensor:
        chances = torch.rand(len(batch.captions))
        captions = [
            "" if chance < _EMPTY else caption
            for caption, chance in zip(batch.captions, chances, strict=True)
        ]
        states, pooled = encode_captions(pipeline, captions)
        kept = (chances < 1 - _ZEROS).float()
        with sdpa_kernel(SDPBackend.MATH):
            z, kept_states = batch.z, states * kept.view(-1, 1, 1)
            return noise_loss(unet, schedule, z, kept_states, pooled * kept.view(-1, 1))

    def save(averaged: UNet2DConditionModel) -> None:
        pipeline.register_modules(unet=averaged)
        save_in_bfloat16(pipeline, folder)

    batches = Corpus(pipeline.vae, plan.images).batches(_PARTS)
    train_denoiser("unet", unet, batches, loss_of, plan.steps, log, save)


def new_pipeline() -> Any:
    """Make a pipeline of SDXL's parts, all small."""
    tokenizer, tokenizer_2 = clip_tokenizer(_WORDS), clip_tokenizer(_WORDS)
    # As in SDXL's second tokenizer.
    tokenizer_2.pad_token = "!"
    configs = [
        clip_config(it, hidden_size=width, projection_dim=width, intermediate_size=2 * width)
        for it, width in zip((tokenizer, tokenizer_2), _WIDTHS, strict=True)
    ]
    # SDXL's second encoder has this wrong end token in its config.
    configs[1].eos_token_id = 2
    return StableDiffusionXLPipeline(
        scheduler=sdxl_scheduler(),
        vae=miniature_vae(_CHANNELS, _SCALE, None),
        text_encoder=CLIPTextModel(configs[0]).train(False),
        tokenizer=tokenizer,
        text_encoder_2=CLIPTextModelWithProjection(configs[1]).train(False),
        tokenizer_2=tokenizer_2,
        unet=new_unet(
            _TIME_WIDTH,
            _WIDTHS,
            block_out_channels=(32, 64, 96),
            transformer_layers_per_block=(1, 1, 1),
            attention_head_dim=(1, 2, 3),
        ),
        add_watermarker=False,
    )


@torch.no_grad()
def encode_captions(pipeline: Any, captions: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Encode captions.

    Returns:
        Both encoders' states, (B, 77, 160), and the second's pooled one, (B, 96).
    """
    states, _, pooled, _ = pipeline.encode_prompt(captions, do_classifier_free_guidance=False)
    return states, pooled


def noise_loss(
    unet: Any,
    schedule: Any,
    z: torch.Tensor,
    states: torch.Tensor,
    pooled: torch.Tensor,
) -> torch.Tensor:
    """Return the mean squared error of the noise at random steps, weighted as min-SNR does.

    Args:
        unet: The UNet.
        schedule: A DDPMScheduler.
        z: Latents, (B, 4, h, w).
        states: Both encoders' states, (B, 77, 160).
        pooled: The second encoder's pooled state, (B, 96).
    """
    batch, _, height, width = z.shape
    noise = torch.randn_like(z)
    timesteps = torch.randint(0, 1000, (batch,))
    size = (8.0 * height, 8.0 * width)
    conditions = {
        "text_embeds": pooled,
        "time_ids": torch.tensor([(*size, 0.0, 0.0, *size)] * batch),
    }
    with torch.autocast("cpu", torch.bfloat16):
        predicted = unet(
            schedule.add_noise(z, noise, timesteps),
            timesteps,
            encoder_hidden_states=states,
            added_cond_kwargs=conditions,
            return_dict=False,
        )[0]  # (B, 4, h, w)
    signal: torch.Tensor = schedule.alphas_cumprod[timesteps]
    snr = signal / (1 - signal)
    errors = functional.mse_loss(predicted.float(), noise, reduction="none").mean((1, 2, 3))
    return (errors * snr.clamp(max=_MAX_SNR) / snr).mean()


if __name__ == "__main__":
    train_from_command_line("SDXL", PLAN, train_sdxl)
