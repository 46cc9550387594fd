"""How well the miniature FLUX draws: ``python -P -m benchmarks.miniature [--report FILE]``.

Images of 200 captions that its training has not shown are drawn by FluxPipeline with its usual
steps and guidance, and read back by plain image analysis. Goals: 90 % are right in shape, color,
background and place; the VAE's reconstruction is above 28 dB.
"""

import random
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from diffusers.pipelines.flux.pipeline_flux import FluxPipeline
from PIL import Image

from benchmarks.results import parser_of, report_result
from worker.miniature.images import FOLDER, Caption, draw, held_out_captions
from worker.miniature.reading import read

_SIDE, _STEPS, _GUIDANCE, _TEXT_TOKENS = 128, 28, 3.5, 64
_BATCH = 25


def main() -> None:
    """Measure and print how much is right."""
    parser = parser_of(__doc__)
    parser.add_argument("--folder", default=str(FOLDER))
    arguments = parser.parse_args()
    pipeline: Any = FluxPipeline.from_pretrained(arguments.folder, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    lines = [accuracy(pipeline), f"VAE: {reconstruction_db(pipeline):.1f} dB"]
    goal = "90 % right; above 28 dB"
    report_result(
        arguments.report, "The miniature FLUX", "python -P -m benchmarks.miniature", goal, lines
    )


def drawn(
    pipeline: Any, captions: Sequence[str], seeds: Sequence[int], side: int = _SIDE
) -> list[Image.Image]:
    """Draw an image for each caption and its seed."""
    images: list[Image.Image] = []
    for start in range(0, len(captions), _BATCH):
        generators = [torch.Generator().manual_seed(it) for it in seeds[start : start + _BATCH]]
        images += pipeline(
            list(captions[start : start + _BATCH]),
            height=side,
            width=side,
            num_inference_steps=_STEPS,
            guidance_scale=_GUIDANCE,
            max_sequence_length=_TEXT_TOKENS,
            generator=generators,
        ).images
    return images


def accuracy(pipeline: Any) -> str:
    """Return how many images of held-out captions are right, in all and in each word."""
    captions = held_out_captions()
    images = drawn(pipeline, [str(it) for it in captions], range(len(captions)))
    right: Counter[str] = Counter()
    for caption, image in zip(captions, images, strict=True):
        seen = read(image)
        right["all"] += seen.is_right(caption)
        for name in Caption._fields:
            right[name] += getattr(seen.caption, name) == getattr(caption, name)
    parts = ", ".join(f"{name} {100 * right[name] / len(captions):.1f} %" for name in right)
    return f"{len(captions)} held-out captions, {_STEPS} steps: {parts}"


@torch.no_grad()
def reconstruction_db(pipeline: Any, count: int | None = None) -> float:
    """Return the peak signal-to-noise ratio of the VAE on images of held-out captions."""
    draws = random.Random(7)
    images = [draw(it, (_SIDE, _SIDE), draws) for it in held_out_captions()[:count]]
    pixels = torch.from_numpy(np.stack([np.asarray(it) for it in images]))
    x = pixels.permute(0, 3, 1, 2).to(pipeline.vae.dtype) / 127.5 - 1  # (B, 3, H, W)
    errors = [
        (pipeline.vae.decode(pipeline.vae.encode(part).latent_dist.mode()).sample - part)
        for part in torch.split(x, _BATCH)
    ]
    error = torch.cat(errors).float().clamp(-2, 2).square().mean()
    return float(10 * torch.log10(4 / error))


if __name__ == "__main__":
    main()
