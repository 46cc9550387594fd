"""The parts of a training type: frozen models, a recipe and a sampler.

The folder of each model family makes its training types of these parts; ``families.py`` lists them.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

from tasks.buckets import Size
from tasks.jobs.pipeline import PipelineConfig
from worker.trainer.data.batches import Batch, Draw
from worker.trainer.data.cache_entries import Text
from worker.trainer.data.inputs import TextEncoders, VaeScaling
from worker.trainer.model_cache import ModelCache, ModelSpec
from worker.trainer.rng import StatelessRng

_DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}

ConfigT = TypeVar("ConfigT", bound=PipelineConfig)
ModelsT = TypeVar("ModelsT", bound="Models[Any, Any]")
DenoiserT = TypeVar("DenoiserT", bound=torch.nn.Module)
TextT = TypeVar("TextT", bound=TextEncoders)


@dataclass(frozen=True)
class Models(Generic[DenoiserT, TextT]):
    """The models of a run, on the device.

    Attributes:
        denoiser: The model that is trained, or that text encoders are trained for.
        vae_scaling: The scale of the VAE's latents.
        vae: None if latents are cached.
        text: The text encoders; None if their outputs are cached.
        denoiser_moves: Whether the denoiser can be moved to main memory and back.
    """

    denoiser: DenoiserT
    vae_scaling: VaeScaling
    vae: AutoencoderKL | None
    text: TextT | None
    denoiser_moves: bool = field(default=True, kw_only=True)


class Precision:
    """The precision that a run computes in: that of mixed_precision, or else of weight_dtype.

    Args:
        config: The run's config.
        device: The device that computes.

    Attributes:
        dtype: The precision.
    """

    def __init__(self, config: PipelineConfig, device: torch.device) -> None:
        weights: torch.dtype = getattr(torch, config.weight_dtype)
        self.dtype: torch.dtype = _DTYPES.get(config.mixed_precision, weights)
        self._device = device

    @property
    def scales_loss(self) -> bool:
        """Whether the loss is scaled: in float16 small gradients would become 0."""
        return self.dtype == torch.float16

    def autocast(self) -> AbstractContextManager[object]:
        """Return the context of the forward pass, which changes nothing in float32."""
        if self.dtype == torch.float32:
            return nullcontext()
        context: AbstractContextManager[object] = torch.autocast(
            self._device.type, dtype=self.dtype
        )
        return context


class Recipe(Protocol):
    """The trained weights, and the loss of a batch."""

    @property
    def precision(self) -> Precision:
        """The precision of the forward pass."""
        ...

    @property
    def ema_decay(self) -> float | None:
        """The decay of the moving average of the weights; None keeps no average."""
        ...

    @property
    def parameters(self) -> dict[str, torch.nn.Parameter]:
        """The trained weights by name, float32, in an order that never changes.

        A name begins with its model's (``unet.``), in the order of the config's learning rates.
        """
        ...

    @property
    def draws(self) -> Sequence[Draw]:
        """The random numbers that ``losses`` takes from its batch."""
        ...

    def losses(self, batch: Batch) -> torch.Tensor:
        """Return the weighted loss of each sample, (B,), float32."""
        ...

    def write(
        self,
        folder: Path,
        name: str,
        metadata: Mapping[str, str],
        weights: Mapping[str, torch.Tensor],
    ) -> list[Path]:
        """Write the results into a folder, the same bytes for the same weights.

        Args:
            folder: An empty folder.
            name: The job's name; the files' names begin with it.
            metadata: The entries for headers that all families have; see ``RunMetadata``.
            weights: The weights to write, by the names of ``parameters``.

        Returns:
            The files; the first one holds the trained weights.
        """
        ...

    def close(self) -> None:
        """Restore the models, but for those in ``TrainingType.changed_parts``."""
        ...


class Sampler(Protocol):
    """Makes the latents of validation images."""

    @property
    def channels(self) -> int:
        """Channels of the latents, C."""
        ...

    @property
    def negative_prompts(self) -> Sequence[str] | None:
        """One for each of the config's validation prompts; None without any."""
        ...

    def sample(
        self, noise: torch.Tensor, text: Text, negative: Text | None, size: Size
    ) -> torch.Tensor:
        """Denoise latents.

        Args:
            noise: Standard normal numbers, (1, C, h, w).
            text: The prompt's encoding, a batch of one.
            negative: The negative prompt's.
            size: The size of the image, H x W.

        Returns:
            Latents, (1, C, h, w).
        """
        ...


@dataclass(frozen=True)
class TrainingType(Generic[ConfigT, ModelsT]):
    """What the trainer needs for the configs of one type.

    Attributes:
        take_models: Returns the models of a run, from the cache or loaded.
        text_spec: Describes the text encoders.
        new_recipe: Makes the recipe; raises a RefusedError if the models cannot be trained so.
        new_sampler: Makes the sampler over a run's models.
        changed_parts: The parts of the model cache that a run leaves changed.
    """

    take_models: Callable[[ConfigT, torch.device, ModelCache], ModelsT]
    text_spec: Callable[[ConfigT, torch.device], ModelSpec]
    new_recipe: Callable[[ConfigT, ModelsT, StatelessRng], Recipe]
    new_sampler: Callable[[ConfigT, ModelsT], Sampler]
    changed_parts: tuple[str, ...] = ()
