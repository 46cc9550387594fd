"""Trains the miniature FLUX from nothing, on a CPU.

    python -P -m worker.trainer.miniature.flux FOLDER

A VAE learns to draw single shapes, then a transformer learns to draw what captions say, by flow
matching. The text encoders stay as random as they begin: the transformer learns to read them. The
images of 200 captions are never shown (``held_out_captions``). FOLDER gets a FluxPipeline in
bfloat16 and ``training.json``: how it was trained, how long, with what losses.
"""

from pathlib import Path
from typing import Any

import torch
from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel
from diffusers.pipelines.flux.pipeline_flux import FluxPipeline
from diffusers.schedulers.scheduling_flow_match_euler_discrete import (
    FlowMatchEulerDiscreteScheduler,
)
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import CLIPTextModel

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
from worker.trainer.tiny_models import clip_config, clip_tokenizer, new_t5, t5_tokenizer

PLAN = Plan(vae_steps=2500, steps=11000)
# FLUX's own.
_CHANNELS, _SCALE, _SHIFT = 16, 0.3611, 0.1159
_WIDTH_CLIP, _WIDTH_T5 = 64, 128
_HEADS, _HEAD_WIDTH, _BLOCKS = 5, 32, 4
# FluxPipeline's own length of text, which few batches have: it is costly.
_LONG_TEXT = 512
_PARTS = {
    Kind((128, 128), 32): 0.38,
    Kind((128, 128), 64): 0.22,
    Kind((96, 160), 32): 0.1,
    Kind((160, 96), 32): 0.1,
    Kind((64, 64), 32): 0.12,
    Kind((64, 64), 64): 0.06,
    Kind((128, 128), _LONG_TEXT, samples=8): 0.02,
}
# To compile takes some minutes, and makes a step a third shorter.
_MIN_COMPILED_STEPS = 1000


def train_flux(folder: Path, plan: Plan) -> None:
    """Train the model, and save it."""
    torch.manual_seed(SEED)
    log = Log(folder / "training.json", plan)
    text, transformer = TextEncoders(), new_transformer()
    vae = new_flux_vae()
    train_vae(vae, plan.vae_steps, log)
    for block in transformer.transformer_blocks if plan.steps >= _MIN_COMPILED_STEPS else ():
        block.compile(dynamic=False)

    def loss_of(batch: Batch) -> torch.Tensor:
        # To compile takes longer than these few batches.
        stance = "force_eager" if batch.tokens == _LONG_TEXT else "default"
        with torch.compiler.set_stance(stance), sdpa_kernel(SDPBackend.MATH):
            states, pooled = text.encode(batch.captions, batch.tokens)
            return flow_matching_loss(transformer, batch.z, states, pooled)

    def save(averaged: FluxTransformer2DModel) -> None:
        pipeline = FluxPipeline(
            scheduler=FlowMatchEulerDiscreteScheduler(shift=1.0),
            vae=vae,
            text_encoder=text.clip,
            tokenizer=text.clip_tokenizer,
            text_encoder_2=text.t5,
            tokenizer_2=text.t5_tokenizer,
            transformer=averaged,
        )
        save_in_bfloat16(pipeline, folder)

    batches = Corpus(vae, plan.images).batches(_PARTS)
    train_denoiser("transformer", transformer, batches, loss_of, plan.steps, log, save)


def new_flux_vae() -> Any:
    """Make a VAE of FLUX's shape: 16 channels at an eighth of the size."""
    return miniature_vae(_CHANNELS, _SCALE, _SHIFT)


class TextEncoders:
    """CLIP and T5, small, random and never trained, with real tokenizers of a small vocabulary."""

    def __init__(self) -> None:
        self.clip_tokenizer, self.t5_tokenizer = clip_tokenizer(WORDS), t5_tokenizer(WORDS)
        widths = {"hidden_size": _WIDTH_CLIP, "projection_dim": _WIDTH_CLIP}
        config = clip_config(self.clip_tokenizer, **widths, intermediate_size=2 * _WIDTH_CLIP)
        self.clip = CLIPTextModel(config).train(False)
        self.t5 = new_t5(
            self.t5_tokenizer, d_model=_WIDTH_T5, d_kv=32, d_ff=2 * _WIDTH_T5, num_heads=4
        ).train(False)

    @torch.no_grad()
    def encode(self, captions: list[str], length: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Encode captions as FluxPipeline does.

        Returns:
            T5's states, (B, length, 128), and CLIP's pooled state, (B, 64).
        """
        padded = {"padding": "max_length", "truncation": True, "return_tensors": "pt"}
        t5 = self.t5_tokenizer(captions, max_length=length, **padded).input_ids
        clip = self.clip_tokenizer(captions, max_length=77, **padded).input_ids
        return self.t5(t5)[0], self.clip(clip).pooler_output


def new_transformer() -> FluxTransformer2DModel:
    """Make a transformer of double-stream blocks: narrow kohya files fit no single blocks."""
    transformer: FluxTransformer2DModel = FluxTransformer2DModel(
        in_channels=4 * _CHANNELS,
        num_layers=_BLOCKS,
        num_single_layers=0,
        attention_head_dim=_HEAD_WIDTH,
        num_attention_heads=_HEADS,
        joint_attention_dim=_WIDTH_T5,
        pooled_projection_dim=_WIDTH_CLIP,
        guidance_embeds=True,
        axes_dims_rope=(8, 12, 12),
    )
    return transformer


def flow_matching_loss(
    transformer: Any,
    z: torch.Tensor,
    states: torch.Tensor,
    pooled: torch.Tensor,
    sigma: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return the mean squared error of the velocity.

    Args:
        transformer: The transformer.
        z: Latents, (B, 16, h, w).
        states: T5's states, (B, tokens, 128).
        pooled: CLIP's pooled state, (B, 64).
        sigma: Noise levels, (B,) from 0 to 1; None for uniform ones.
    """
    batch, channels, height, width = z.shape
    noise = torch.randn_like(z)
    sigma = torch.rand(batch) if sigma is None else sigma
    level = sigma.view(-1, 1, 1, 1)
    pack: Any = FluxPipeline._pack_latents
    ids: Any = FluxPipeline._prepare_latent_image_ids
    with torch.autocast("cpu", torch.bfloat16):
        velocity = transformer(
            hidden_states=pack((1 - level) * z + level * noise, batch, channels, height, width),
            timestep=sigma,
            # It does not depend on the guidance: whatever a caller gives is right.
            guidance=1 + 3 * torch.rand(batch),
            pooled_projections=pooled,
            encoder_hidden_states=states,
            txt_ids=torch.zeros(states.shape[1], 3),
            img_ids=ids(batch, height // 2, width // 2, torch.device("cpu"), torch.float32),
            return_dict=False,
        )[0]  # (B, hw/4, 64)
    target = pack(noise - z, batch, channels, height, width)
    return functional.mse_loss(velocity.float(), target)


if __name__ == "__main__":
    train_from_command_line("FLUX", PLAN, train_flux)
