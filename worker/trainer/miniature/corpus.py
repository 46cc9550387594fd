"""The images that the miniature models are trained on, as latents with captions."""

import random
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch

from worker.miniature.images import Caption, draw, training_captions
from worker.trainer.miniature.training import SEED
from worker.trainer.miniature.vae import encode

Size = tuple[int, int]
# Parts of the images, by width and height in pixels.
_SIZES: dict[Size, float] = {(128, 128): 0.6, (96, 160): 0.12, (160, 96): 0.12, (64, 64): 0.16}


class Kind(NamedTuple):
    """What all samples of a batch have.

    Attributes:
        size: Width and height, pixels.
        tokens: Length of the text.
        samples: How many samples.
    """

    size: Size
    tokens: int
    samples: int = 64


class Batch(NamedTuple):
    """What a step is trained on.

    Attributes:
        z: Latents, (B, C, h, w).
        captions: Captions.
        tokens: Length of their text.
    """

    z: torch.Tensor
    captions: list[str]
    tokens: int


class Corpus:
    """The training's images as latents, with what their captions may say."""

    def __init__(self, vae: Any, count: int) -> None:
        self._draws = random.Random(SEED + 1)
        self._latents: dict[Size, torch.Tensor] = {}
        self._captions: dict[Size, list[Caption]] = {}
        known = training_captions()
        for size, part in _SIZES.items():
            captions = [self._draws.choice(known) for _ in range(int(part * count))]
            latents = []
            for start in range(0, len(captions), 50):
                batch = captions[start : start + 50]
                latents.append(encode(vae, [draw(it, size, self._draws) for it in batch]))
            self._latents[size], self._captions[size] = torch.cat(latents), captions

    def batches(self, parts: Mapping[Kind, float]) -> Iterator[Batch]:
        """Yield batches of these kinds, as often as their parts say, for ever."""
        while True:
            [kind] = self._draws.choices(list(parts), list(parts.values()))
            captions = self._captions[kind.size]
            rows = self._draws.choices(range(len(captions)), k=kind.samples)
            worded = [captions[row].worded(self._draws) for row in rows]
            yield Batch(self._latents[kind.size][rows], worded, kind.tokens)
