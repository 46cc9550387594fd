"""Validation images: what the training makes of the prompts, in the middle of a run.

Sampled by diffusers' own pipelines. Leaves the run as it was: no gradient, no draw that training
shares, and every model back in its mode and place.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers.image_processor import VaeImageProcessor
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from PIL import Image

from tasks.cache.plan import CacheIndex
from tasks.events import Artifact, Note, ValidationImages
from tasks.stages.trainer_protocol import TrainerRequest
from tasks.store import Store, validation_prefix
from worker.trainer.data.cache_entries import VAE_FACTOR, CachedEntries, Text, text_tokens
from worker.trainer.encoders import load_vae
from worker.trainer.event_pipe import Emit, StopSwitch, phase
from worker.trainer.memory import release_memory
from worker.trainer.models import FluxModels, SdxlModels
from worker.trainer.rng import StatelessRng
from worker.trainer.validation.samplers import FluxSampler, SdxlSampler

Place = tuple[int, int]


class Validation:
    """Makes the images of a run's prompts at one step after the other.

    Args:
        request: Says what to make, and where it goes.
        store: Keeps the images.
        models: Of the run; changed by nothing but training.
        index: Where the prompts' entries are, if text is cached.
        autocast: The precision that training computes in.
        draws: Decide the noise that images start from.
        emit: Takes the events.
        stop: Asked before each image.

    Raises:
        BaseModelFilesError: The base model has no usable scheduler.
    """

    def __init__(
        self,
        request: TrainerRequest,
        store: Store,
        models: FluxModels | SdxlModels,
        index: CacheIndex | None,
        autocast: Callable[[], AbstractContextManager[object]],
        draws: StatelessRng,
        emit: Emit,
        stop: StopSwitch,
    ) -> None:
        self._request = request
        self._config = request.training
        self._store = store
        self._models = models
        self._index = index
        self._autocast = autocast
        self._draws = draws
        self._emit = emit
        self._stop = stop
        self._denoiser: Any = models.denoiser
        self._device: torch.device = self._denoiser.device
        self._size = self._config.loader.target_size()
        self._sampler: FluxSampler | SdxlSampler = (
            FluxSampler(self._config, models.transformer)
            if isinstance(models, FluxModels)
            else SdxlSampler(self._config, models.unet)
        )

    @torch.no_grad()
    def make(self, step: int) -> None:
        """Make, store and tell of the images of this step.

        Raises:
            InterruptedRun: It was asked to stop; nothing was told.
            DamagedFileError: A prompt's cache entry is not what was written.
        """
        encoders, vae = self._encoders(), self._models.vae
        with phase(self._emit, "validate", step), _in_eval_mode(self._denoiser, *encoders):
            with self._off_the_gpu(self._denoiser, *([vae] if vae else [])):
                texts = self._texts()
            with self._off_the_gpu(*encoders, *([vae] if vae else [])):
                latents = self._latents(*texts)
            with self._off_the_gpu(*encoders, self._denoiser):
                images = self._write(step, latents)
        self._emit(ValidationImages(step=step, images=images))

    def _texts(self) -> tuple[list[Text], list[Text | None]]:
        """What the encoders make of the prompts and of the negative ones."""
        prompts = self._config.validation_prompts
        negative = getattr(self._config, "negative_validation_prompts", None)
        if self._index is not None and self._config.caches_text:
            tokens = text_tokens(self._config)
            entries = CachedEntries(self._store, self._index.packs)
            cached = [
                [_batch_of_one(entries.text(digest, tokens)) for digest in digests]
                for digests in (self._index.prompt_texts, self._index.negative_texts)
            ]
            return cached[0], list(cached[1]) or [None] * len(prompts)
        return self._encoded(prompts), (
            list(self._encoded(negative)) if negative is not None else [None] * len(prompts)
        )

    def _encoded(self, prompts: Sequence[str]) -> list[Text]:
        if self._models.text is None:
            raise AssertionError("without cached text there must be encoders")
        with self._autocast():
            return [self._models.text.encode([prompt]) for prompt in prompts]

    def _latents(
        self, texts: Sequence[Text], negatives: Sequence[Text | None]
    ) -> dict[Place, torch.Tensor]:
        """The sampled latents, (1, C, h, w), by number of prompt and image, both from 1."""
        height, width = self._size.height // VAE_FACTOR, self._size.width // VAE_FACTOR
        shape = (1, self._sampler.channels, height, width)
        found = {}
        rows = zip(self._config.validation_prompts, texts, negatives, strict=True)
        for number, (prompt, text, negative) in enumerate(rows, start=1):
            for image in range(1, self._config.num_validation_images_per_prompt + 1):
                self._stop.check()
                # By the prompt's words, so that it keeps its noise when others come or go.
                noise = self._draws.normal(shape, "validation", prompt, image).to(self._device)
                with self._autocast():
                    found[number, image] = self._sampler.sample(noise, text, negative, self._size)
        return found

    def _write(self, step: int, latents: dict[Place, torch.Tensor]) -> tuple[Artifact, ...]:
        """Decode, and put into the store what came out as an image."""
        prefix = validation_prefix(self._request.job_id, step, self._request.attempt)
        scratch = Path(self._request.scratch_dir)
        scratch.mkdir(parents=True, exist_ok=True)
        vae = self._models.vae or load_vae(self._config, self._device)
        artifacts = []
        for (prompt, number), z in latents.items():
            self._stop.check()
            image = self._decoded(vae, z)
            name = f"validation-{step:06d}-{prompt}-{number}.png"
            if image is None:
                message = f"{name} came out as NaN or infinity and was left out"
                self._emit(Note(level="warning", message=message))
                continue
            path = scratch / name
            image.save(path, "PNG")
            artifacts.append(self._store.put_artifact(f"{prefix}/{name}", path))
            path.unlink()
        del vae
        release_memory()
        return tuple(artifacts)

    def _decoded(self, vae: AutoencoderKL, z: torch.Tensor) -> Image.Image | None:
        """The image of latents (1, C, h, w); None where there is none."""
        numbers = self._models.vae_numbers
        z = z.float() / numbers.scaling_factor + numbers.shift_factor
        values = vae.decode(z, return_dict=False)[0]  # (1, 3, H, W)
        if not values.isfinite().all():
            return None
        image: Image.Image = VaeImageProcessor().postprocess(values)[0]
        return image

    def _encoders(self) -> list[torch.nn.Module]:
        text = self._models.text
        return [] if text is None else [text.pipeline.text_encoder, text.pipeline.text_encoder_2]

    @contextmanager
    def _off_the_gpu(self, *modules: torch.nn.Module) -> Iterator[None]:
        """Where the config asks for it, these are in main memory meanwhile."""
        if not self._config.enable_cpu_offload_during_validation:
            yield
            return
        for module in modules:
            module.to("cpu")
        release_memory()
        try:
            yield
        finally:
            # A module's parameters stay the same objects, which the optimizer holds.
            for module in modules:
                module.to(self._device)


@contextmanager
def _in_eval_mode(*modules: torch.nn.Module) -> Iterator[None]:
    modes = [module.training for module in modules]
    for module in modules:
        module.eval()
    try:
        yield
    finally:
        for module, mode in zip(modules, modes, strict=True):
            module.train(mode)


def _batch_of_one(text: Text) -> Text:
    return Text(text.prompt_embeds[None], text.pooled[None])
