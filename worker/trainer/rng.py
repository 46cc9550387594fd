"""Every random draw of a run, as a function of (seed, purpose, place).

No generator lives longer than one draw, so that there is no state to save: a run that starts
again at step n draws what the undisturbed run would have drawn there. All draws are made on the
CPU, whose numbers do not depend on the GPU at hand.
"""

import hashlib

import torch


class StatelessRng:
    """The draws of one seed.

    Args:
        seed: Decides them all.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def generator(self, purpose: str, *place: int | str) -> torch.Generator:
        """A generator of its own for one purpose (``noise``) at one place (epoch, sample)."""
        return torch.Generator().manual_seed(self.number(purpose, *place))

    def number(self, purpose: str, *place: int | str) -> int:
        """A seed of 63 bits for one purpose at one place."""
        text = "/".join(str(part) for part in (self.seed, purpose, *place))
        digest = hashlib.sha256(text.encode()).digest()
        # manual_seed takes 64 bits; Generator's own streams of nearby seeds are not independent,
        # those of hashes are.
        return int.from_bytes(digest[:8], "little") >> 1

    def normal(self, shape: tuple[int, ...], purpose: str, *place: int | str) -> torch.Tensor:
        """Standard normal numbers, float32."""
        return torch.randn(shape, generator=self.generator(purpose, *place))

    def uniform(self, shape: tuple[int, ...], purpose: str, *place: int | str) -> torch.Tensor:
        """Numbers in [0, 1), float32."""
        return torch.rand(shape, generator=self.generator(purpose, *place))

    def order(self, length: int, purpose: str, *place: int | str) -> list[int]:
        """A permutation of range(length)."""
        order: list[int] = torch.randperm(
            length, generator=self.generator(purpose, *place)
        ).tolist()
        return order
