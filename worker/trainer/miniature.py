"""Trains the miniature FLUX from nothing, on a CPU.

    python -P -m worker.trainer.miniature FOLDER

A VAE learns to draw single shapes, then a transformer learns to draw what captions say, by flow
matching. The text encoders stay as random as they begin: the transformer learns to read them. The
images of 200 captions are never shown (``held_out_captions``). FOLDER gets a FluxPipeline in
bfloat16 and ``training.json``: how it was trained, how long, with what losses.
"""

import argparse
import copy
import json
import math
import random
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel
from diffusers.pipelines.flux.pipeline_flux import FluxPipeline
from diffusers.schedulers.scheduling_flow_match_euler_discrete import (
    FlowMatchEulerDiscreteScheduler,
)
from PIL import Image
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from transformers import CLIPTextModel

from worker.miniature.images import (
    WORDS,
    Caption,
    draw,
    draw_outline,
    training_captions,
)
from worker.trainer.tiny_models import (
    clip_config,
    clip_tokenizer,
    new_t5,
    new_vae,
    save_pipeline,
    t5_tokenizer,
)

SEED = 22
# FLUX's own: latents of zero mean and unit variance are z = (raw - shift) * scale.
_SHIFT, _SCALE = 0.1159, 0.3611
_CHANNELS = 16
# Of latents as the encoder gives them: a deviation of 0.007, next to means that deviate by 3.
_LOG_VARIANCE = -10.0
_WIDTH_CLIP, _WIDTH_T5 = 64, 128
_HEADS, _HEAD_WIDTH, _BLOCKS = 5, 32, 4

_VAE_BATCH, _VAE_RATE, _VAE_SIDE = 16, 2e-3, 64
# Of the VAE's steps, those before its latents are scaled to zero mean and unit variance.
_BEFORE_SCALING = 0.7
_KL_WEIGHT = 1e-6
_BATCH, _RATE, _WARM_UP, _EMA = 64, 1.2e-3, 300, 0.999
# Parts of the training's images, by width and height in pixels.
_SIZES = {(128, 128): 0.6, (96, 160): 0.12, (160, 96): 0.12, (64, 64): 0.16}
# FluxPipeline's own length of text, which few batches have: it is costly.
_LONG_TEXT = 512
# Parts of the batches, by size and the number of T5's tokens.
_BATCHES = {
    ((128, 128), 32): 0.38,
    ((128, 128), 64): 0.22,
    ((96, 160), 32): 0.1,
    ((160, 96), 32): 0.1,
    ((64, 64), 32): 0.12,
    ((64, 64), 64): 0.06,
    ((128, 128), _LONG_TEXT): 0.02,
}
_REPORT_EVERY, _SAVE_EVERY = 100, 1000
# To compile takes some minutes, and makes a step a third shorter.
_MIN_COMPILED_STEPS = 1000


@dataclass(frozen=True)
class Plan:
    """How much is trained.

    Attributes:
        vae_steps: Steps of the VAE.
        steps: Steps of the transformer.
        images: Images that the transformer sees, again and again.
    """

    vae_steps: int = 2500
    steps: int = 11000
    images: int = 20000


class Log:
    """What a training did, kept in a file from its first step on."""

    def __init__(self, path: Path, plan: Plan) -> None:
        self._path, self._began = path, time.monotonic()
        self._values: dict[str, Any] = {"seed": SEED, **vars(plan), "losses": {}}

    def note(self, part: str, step: int, loss: float) -> None:
        """Add a loss."""
        self._values["losses"].setdefault(part, []).append([step, round(loss, 5)])
        self.set(hours=round((time.monotonic() - self._began) / 3600, 2))
        sys.stdout.write(f"{part}, step {step}: {loss:.5f}\n")
        sys.stdout.flush()

    def set(self, **values: Any) -> None:
        """Set values of the file."""
        self._values |= values
        self._path.write_text(json.dumps(self._values) + "\n", "utf-8")


def train_miniature(folder: Path, plan: Plan) -> None:
    """Train the model, and save it."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(SEED)
    log = Log(folder / "training.json", plan)
    log.set(torch=torch.__version__, threads=torch.get_num_threads())
    text, transformer = TextEncoders(), new_transformer()
    vae = miniature_vae()
    train_vae(vae, plan.vae_steps, log)

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
        save_pipeline(copy.deepcopy(pipeline).to(dtype=torch.bfloat16), folder)

    train_transformer(transformer, Corpus(vae, plan.images), text, plan.steps, log, save)


def miniature_vae() -> AutoencoderKL:
    """Make a VAE of FLUX's shape: 16 channels at an eighth of the size."""
    return new_vae(
        block_out_channels=(24, 48, 64, 64),
        norm_num_groups=8,
        latent_channels=_CHANNELS,
        scaling_factor=_SCALE,
        shift_factor=_SHIFT,
        use_quant_conv=False,
        use_post_quant_conv=False,
        mid_block_add_attention=False,
    )


def train_vae(vae: Any, steps: int, log: Log) -> None:
    """Train the VAE on images of all shapes and of outlines without a name."""
    draws = random.Random(SEED)
    vae.to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=_VAE_RATE, weight_decay=1e-4)
    for step in range(steps):
        if step == int(_BEFORE_SCALING * steps):
            scale_latents(vae, _shown(draws))
        _set_rate(optimizer, _VAE_RATE, step, steps)
        x = _shown(draws)  # (B, 3, H, W)
        with torch.autocast("cpu", torch.bfloat16):
            posterior = vae.encode(x).latent_dist
            y = vae.decode(posterior.sample()).sample
        error = functional.mse_loss(y.float(), x)
        loss = error + functional.l1_loss(y.float(), x) + _KL_WEIGHT * posterior.kl().mean().float()
        _step(optimizer, loss, vae)
        if step % _REPORT_EVERY == 0 or step == steps - 1:
            log.note("vae", step, error.item())
    vae.train(False)
    scale_latents(vae, _shown(draws))
    narrow_latents(vae)


@torch.no_grad()
def scale_latents(vae: Any, x: torch.Tensor) -> None:
    """Give each channel of the latents FLUX's mean and variance, by the layers around them."""
    raw = vae.encode(x).latent_dist.mean.float()  # (B, 16, h, w)
    mean, factor = raw.mean((0, 2, 3)), raw.std((0, 2, 3)) * _SCALE  # (16,)
    last: Any = vae.encoder.conv_out
    first: Any = vae.decoder.conv_in
    # new = (raw - mean) / factor + shift
    last.weight[:_CHANNELS] /= factor.view(-1, 1, 1, 1)
    last.bias[:_CHANNELS] = (last.bias[:_CHANNELS] - mean) / factor + _SHIFT
    last.bias[_CHANNELS:] -= 2 * factor.log()
    first.bias += (first.weight.sum((2, 3)) * (mean - _SHIFT * factor)).sum(1)
    first.weight *= factor.view(1, -1, 1, 1)


@torch.no_grad()
def narrow_latents(vae: Any) -> None:
    """Give latents next to no variance, as FLUX's have: the transformer is trained on their means.

    Trainers draw latents from what the encoder gives. With what its training leaves, a deviation of
    a quarter of the means', they would train on noise that the transformer has never seen.
    """
    last: Any = vae.encoder.conv_out
    last.weight[_CHANNELS:] = 0
    last.bias[_CHANNELS:] = _LOG_VARIANCE


def _shown(draws: random.Random) -> torch.Tensor:
    """Return images for the VAE, (B, 3, 64, 64) in -1 to 1."""
    size = (_VAE_SIDE, _VAE_SIDE)
    images = [draw_outline(size, draws) for _ in range(_VAE_BATCH)]
    return _tensor(images)


def _tensor(images: list[Image.Image]) -> torch.Tensor:
    """Return images of one size as (B, 3, H, W) in -1 to 1."""
    pixels = torch.from_numpy(np.stack([np.asarray(it) for it in images]))
    x = pixels.permute(0, 3, 1, 2).float() / 127.5 - 1
    return x.contiguous(memory_format=torch.channels_last)


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


class Corpus:
    """The training's images as latents, with what their captions may say."""

    def __init__(self, vae: AutoencoderKL, count: int) -> None:
        self._draws = random.Random(SEED + 1)
        self._known = training_captions()
        self._latents: dict[tuple[int, int], torch.Tensor] = {}
        self._captions: dict[tuple[int, int], list[Caption]] = {}
        for size, part in _SIZES.items():
            captions = [self._draws.choice(self._known) for _ in range(int(part * count))]
            latents = []
            for start in range(0, len(captions), 50):
                batch = captions[start : start + 50]
                latents.append(encode(vae, [draw(it, size, self._draws) for it in batch]))
            self._latents[size], self._captions[size] = torch.cat(latents), captions

    def batches(self) -> Iterator[tuple[torch.Tensor, list[str], int]]:
        """Yield latents, (B, 16, h, w), captions, and the length of their text."""
        kinds, parts = list(_BATCHES), list(_BATCHES.values())
        while True:
            [(size, length)] = self._draws.choices(kinds, parts)
            count = _BATCH // 8 if length == _LONG_TEXT else _BATCH
            rows = self._draws.choices(range(len(self._captions[size])), k=count)
            captions = [self._captions[size][row].worded(self._draws) for row in rows]
            yield self._latents[size][rows], captions, length


@torch.no_grad()
def encode(vae: Any, images: list[Image.Image]) -> torch.Tensor:
    """Return latents of images of one size, (B, 16, h, w)."""
    with torch.autocast("cpu", torch.bfloat16):
        raw: torch.Tensor = vae.encode(_tensor(images)).latent_dist.mode()
    return (raw.float() - _SHIFT) * _SCALE


def train_transformer(
    transformer: FluxTransformer2DModel,
    corpus: Corpus,
    text: TextEncoders,
    steps: int,
    log: Log,
    save: Callable[[FluxTransformer2DModel], None],
) -> None:
    """Train the transformer by flow matching, and save the mean of its last weights at times."""
    average: Any = get_ema_multi_avg_fn
    averaged: Any = AveragedModel(transformer, multi_avg_fn=average(_EMA))
    for block in transformer.transformer_blocks if steps >= _MIN_COMPILED_STEPS else ():
        block.compile(dynamic=False)
    optimizer = torch.optim.AdamW(
        transformer.parameters(), lr=_RATE, betas=(0.9, 0.98), weight_decay=0.01
    )
    losses: list[float] = []
    for step, (z, captions, length) in zip(range(steps), corpus.batches(), strict=False):
        _set_rate(optimizer, _RATE, step, steps)
        # To compile takes longer than these few batches.
        stance = "force_eager" if length == _LONG_TEXT else "default"
        with torch.compiler.set_stance(stance), sdpa_kernel(SDPBackend.MATH):
            loss = flow_matching_loss(transformer, z, *text.encode(captions, length))
            _step(optimizer, loss, transformer)
        averaged.update_parameters(transformer)
        losses.append(loss.item())
        if len(losses) == _REPORT_EVERY or step == steps - 1:
            log.note("transformer", step + 1, sum(losses) / len(losses))
            losses.clear()
        if (step + 1) % _SAVE_EVERY == 0 or step == steps - 1:
            save(averaged.module.eval())


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


def _set_rate(optimizer: torch.optim.Optimizer, rate: float, step: int, steps: int) -> None:
    """Set the learning rate: up in a straight line, then down as half a cosine."""
    factor = min(1.0, (step + 1) / _WARM_UP) * (0.5 + 0.5 * math.cos(math.pi * step / steps))
    for group in optimizer.param_groups:
        group["lr"] = rate * max(factor, 0.01)


def _step(optimizer: torch.optim.Optimizer, loss: torch.Tensor, model: torch.nn.Module) -> None:
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()


def main() -> None:
    """Train the model from the command line."""
    parser = argparse.ArgumentParser(description="Train the miniature FLUX on a CPU.")
    parser.add_argument("folder", type=Path)
    plan = Plan()
    for name, value in vars(plan).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=value)
    arguments = vars(parser.parse_args())
    train_miniature(arguments.pop("folder"), Plan(**arguments))


if __name__ == "__main__":
    main()
