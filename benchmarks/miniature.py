"""How well the miniature FLUX draws: ``python -P -m benchmarks.miniature [--report FILE]``.

Images of 200 captions that its training has not shown are drawn by FluxPipeline with its usual
steps and guidance, and read back by plain image analysis. Goals: 90 % are right in shape, color,
background and place; the VAE's reconstruction is above 28 dB.
"""

import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from diffusers.pipelines.flux.pipeline_flux import FluxPipeline
from PIL import Image

from benchmarks.results import parser_of, report_result
from worker.miniature.images import FOLDER, Caption, draw, held_out_captions
from worker.miniature.reading import read
from worker.trainer.miniature import encode, flow_matching_loss

SIDE = 128
_STEPS, _GUIDANCE, _TEXT_TOKENS = 28, 3.5, 64
_BATCH = 25
# Of a loss: T5's tokens, which are more than any caption has, and draws of noise.
_LOSS_TOKENS, _LOSS_DRAWS = 32, 4


class Miniature:
    """The miniature FLUX, with one LoRA at a time.

    Args:
        folder: The model's folder.
    """

    def __init__(self, folder: Path = FOLDER) -> None:
        pipeline: Any = FluxPipeline.from_pretrained(folder, dtype=torch.float32)
        pipeline.set_progress_bar_config(disable=True)
        self.pipeline = pipeline

    def use(self, lora: Path | None, strength: float = 1.0) -> None:
        """Load a LoRA's file instead of the one before; None leaves the base model."""
        self.pipeline.unload_lora_weights()
        if lora is not None:
            self.pipeline.load_lora_weights(lora.parent, weight_name=lora.name, adapter_name="lora")
            self.pipeline.set_adapters(["lora"], [strength])

    def draw(
        self, captions: Sequence[str], seeds: Sequence[int], side: int = SIDE
    ) -> list[Image.Image]:
        """Draw an image for each caption and its seed."""
        images: list[Image.Image] = []
        for start in range(0, len(captions), _BATCH):
            generators = [torch.Generator().manual_seed(it) for it in seeds[start : start + _BATCH]]
            images += self.pipeline(
                list(captions[start : start + _BATCH]),
                height=side,
                width=side,
                num_inference_steps=_STEPS,
                guidance_scale=_GUIDANCE,
                max_sequence_length=_TEXT_TOKENS,
                generator=generators,
            ).images
        return images

    def draws_right(self, captions: Sequence[Caption], seeds: Sequence[int]) -> list[bool]:
        """Return whether the image of each caption shows all that it says."""
        images = self.draw([str(it) for it in captions], seeds)
        return [read(image).is_right(it) for it, image in zip(captions, images, strict=True)]

    @torch.no_grad()
    def loss(self, images: Sequence[Image.Image], captions: Sequence[str], sigma: float) -> float:
        """Return the mean loss of images at a noise level, with the same noise each time."""
        torch.manual_seed(0)
        z = encode(self.pipeline.vae, list(images))
        states, pooled, _ = self.pipeline.encode_prompt(
            list(captions), None, max_sequence_length=_LOSS_TOKENS
        )
        levels = torch.full((len(images),), sigma)
        losses = [
            flow_matching_loss(self.pipeline.transformer, z, states, pooled, levels).item()
            for _ in range(_LOSS_DRAWS)
        ]
        return fmean(losses)

    @torch.no_grad()
    def reconstruction_db(self, count: int | None = None) -> float:
        """Return the peak signal-to-noise ratio of the VAE on images of held-out captions."""
        vae, draws = self.pipeline.vae, random.Random(7)
        images = [draw(it, (SIDE, SIDE), draws) for it in held_out_captions()[:count]]
        pixels = torch.from_numpy(np.stack([np.asarray(it) for it in images]))
        x = pixels.permute(0, 3, 1, 2).to(vae.dtype) / 127.5 - 1  # (B, 3, H, W)
        errors = [
            (vae.decode(vae.encode(part).latent_dist.mode()).sample - part)
            for part in torch.split(x, _BATCH)
        ]
        error = torch.cat(errors).float().clamp(-2, 2).square().mean()
        return float(10 * torch.log10(4 / error))


def main() -> None:
    """Measure and print how much is right."""
    parser = parser_of(__doc__)
    parser.add_argument("--folder", type=Path, default=FOLDER)
    arguments = parser.parse_args()
    miniature = Miniature(arguments.folder)
    lines = [accuracy(miniature), f"VAE: {miniature.reconstruction_db():.1f} dB"]
    goal = "90 % right; above 28 dB"
    report_result(
        arguments.report, "The miniature FLUX", "python -P -m benchmarks.miniature", goal, lines
    )


def accuracy(miniature: Miniature) -> str:
    """Return how many images of held-out captions are right, in all and in each word."""
    captions = held_out_captions()
    images = miniature.draw([str(it) for it in captions], range(len(captions)))
    right: Counter[str] = Counter()
    for caption, image in zip(captions, images, strict=True):
        seen = read(image)
        right["all"] += seen.is_right(caption)
        for name in Caption._fields:
            right[name] += getattr(seen.caption, name) == getattr(caption, name)
    parts = ", ".join(f"{name} {100 * right[name] / len(captions):.1f} %" for name in right)
    return f"{len(captions)} held-out captions, {_STEPS} steps: {parts}"


if __name__ == "__main__":
    main()
