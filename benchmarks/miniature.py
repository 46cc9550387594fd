"""How well the miniature models draw: ``python -P -m benchmarks.miniature [--report FILE]``.

Images of 200 captions that their training has not shown are drawn by the pipelines of diffusers,
and read back by plain image analysis. Goals: 90 % are right in shape, color, background and place;
the VAE's reconstruction is above 28 dB.
"""

import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from PIL import Image

from benchmarks.results import parser_of, report_result
from worker.miniature.images import FLUX_FOLDER, SDXL_FOLDER, Caption, draw, held_out_captions
from worker.miniature.reading import read
from worker.trainer.miniature.flux import flow_matching_loss
from worker.trainer.miniature.vae import encode

SIDE = 128
STEPS = 28
_BATCH = 25
_OPTIONS = {
    "FluxPipeline": {"guidance_scale": 3.5, "max_sequence_length": 64},
    "StableDiffusionXLPipeline": {"guidance_scale": 5.0},
}
# Of a loss: T5's tokens, which are more than any caption has, and draws of noise.
_LOSS_TOKENS, _LOSS_DRAWS = 32, 4


class Miniature:
    """A miniature model, with one LoRA at a time.

    Args:
        folder: The model's folder.
        dtype: What it computes in.
        steps: The steps of an image.
    """

    def __init__(
        self, folder: Path, dtype: torch.dtype = torch.float32, steps: int = STEPS
    ) -> None:
        pipeline: Any = DiffusionPipeline.from_pretrained(folder, dtype=dtype)
        pipeline.set_progress_bar_config(disable=True)
        self.pipeline, self._steps = pipeline, steps

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
                num_inference_steps=self._steps,
                generator=generators,
                **_OPTIONS[type(self.pipeline).__name__],
            ).images
        return images

    def draws_right(self, captions: Sequence[Caption], seeds: Sequence[int]) -> list[bool]:
        """Return whether the image of each caption shows all that it says."""
        images = self.draw([str(it) for it in captions], seeds)
        return [read(image).is_right(it) for it, image in zip(captions, images, strict=True)]

    @torch.no_grad()
    def flux_loss(
        self, images: Sequence[Image.Image], captions: Sequence[str], sigma: float
    ) -> float:
        """Return FLUX's mean loss of images at a noise level, with the same noise each time."""
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
    arguments = parser_of(__doc__).parse_args()
    lines = []
    for name, folder in (("FLUX", FLUX_FOLDER), ("SDXL", SDXL_FOLDER)):
        miniature = Miniature(folder)
        lines += [
            f"{name}: {accuracy(miniature)}",
            f"{name}'s VAE: {miniature.reconstruction_db():.1f} dB",
        ]
    goal = "90 % right; above 28 dB"
    report_result(
        arguments.report, "The miniature models", "python -P -m benchmarks.miniature", goal, lines
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
    return f"{len(captions)} held-out captions, {STEPS} steps: {parts}"


if __name__ == "__main__":
    main()
