"""Every random draw of a run, as a function of (seed, purpose, place).

No generator outlives a draw, so there is no random state to save: a run that resumes at step n
draws the same numbers there as an uninterrupted run. All draws are made on the CPU, whose numbers
do not depend on the GPU. The purposes of all draws are part of the numbers: do not rename one.
"""

import hashlib

import torch


class StatelessRng:
    """The draws of one seed.

    Args:
        seed: Decides all draws.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def generator(self, purpose: str, *place: int | str) -> torch.Generator:
        """Make the generator of one purpose (``noise``) at one place (epoch, sample)."""
        return torch.Generator().manual_seed(self.number(purpose, *place))

    def number(self, purpose: str, *place: int | str) -> int:
        """Return a seed of 63 bits for one purpose at one place."""
        text = "/".join(str(part) for part in (self.seed, purpose, *place))
        digest = hashlib.sha256(text.encode()).digest()
        # manual_seed takes 64 bits. The streams of consecutive seeds are not independent, those of
        # hashes are.
        return int.from_bytes(digest[:8], "little") >> 1

    def normal(self, shape: tuple[int, ...], purpose: str, *place: int | str) -> torch.Tensor:
        """Draw standard normal numbers of a shape, float32."""
        return torch.randn(shape, generator=self.generator(purpose, *place))

    def uniform(self, shape: tuple[int, ...], purpose: str, *place: int | str) -> torch.Tensor:
        """Draw numbers in [0, 1) of a shape, float32."""
        return torch.rand(shape, generator=self.generator(purpose, *place))

    def order(self, length: int, purpose: str, *place: int | str) -> list[int]:
        """Draw a permutation of range(length)."""
        order: list[int] = torch.randperm(
            length, generator=self.generator(purpose, *place)
        ).tolist()
        return order
