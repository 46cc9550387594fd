"""Validation images: samples of the model that is trained, in the middle of a run.

They leave no trace in the run: no gradient, no draw that training shares, and every model back in
its mode and on its device.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
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
from worker.trainer.base_model import load_vae
from worker.trainer.compute.memory import release_memory
from worker.trainer.data.cache_entries import VAE_FACTOR, CachedEntries, Text
from worker.trainer.event_pipe import Emit, StopSwitch, phase
from worker.trainer.rng import StatelessRng
from worker.trainer.training_type import Models, Precision, Sampler

Place = tuple[int, int]


class Validation:
    """Makes the images of a run's prompts, at one step after the other.

    Args:
        request: Names the job, the start and the scratch folder, and has the prompts.
        store: Keeps the images.
        models: The run's models.
        sampler: Makes latents with the denoiser.
        index: Has the prompts' cache entries, if text is cached.
        precision: The precision that training computes in.
        rng: Draws the noise that images start from.
        emit: Takes the events.
        stop: Checked before each image.
    """

    def __init__(
        self,
        request: TrainerRequest,
        store: Store,
        models: Models[Any, Any],
        sampler: Sampler,
        index: CacheIndex | None,
        precision: Precision,
        rng: StatelessRng,
        emit: Emit,
        stop: StopSwitch,
    ) -> None:
        self._request = request
        self._config = request.training
        self._store = store
        self._models = models
        self._sampler = sampler
        self._index = index
        self._precision = precision
        self._rng = rng
        self._emit = emit
        self._stop = stop
        self._denoiser: torch.nn.Module = models.denoiser
        self._device: torch.device = models.denoiser.device
        self._size = self._config.loader.target_size()

    @torch.no_grad()
    def make(self, step: int) -> None:
        """Make and store the images of this step, and emit their event.

        Raises:
            InterruptedRun: The run was asked to stop; no event was emitted.
            DamagedFileError: A prompt's cache entry is damaged.
        """
        text, vae = self._models.text, self._models.vae
        encoders: list[torch.nn.Module] = [] if text is None else list(text.encoders.values())
        with phase(self._emit, "validate", step), _in_eval_mode(self._denoiser, *encoders):
            with self._off_the_gpu(self._denoiser, *([vae] if vae else [])):
                texts = self._texts()
            with self._off_the_gpu(*encoders, *([vae] if vae else [])):
                latents = self._latents(*texts)
            with self._off_the_gpu(*encoders, self._denoiser):
                images = self._write(step, latents)
        self._emit(ValidationImages(step=step, images=images))

    def _texts(self) -> tuple[list[Text], list[Text | None]]:
        """Return the encoded prompts and negative prompts, batches of one."""
        prompts = self._config.sample_prompts
        negative = self._sampler.negative_prompts
        if self._index is not None and self._config.caches_text:
            tokens = self._config.text_tokens
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
            raise AssertionError("text is not cached, and there are no encoders")
        with self._precision.autocast():
            return [self._models.text.encode([prompt]) for prompt in prompts]

    def _latents(
        self, texts: Sequence[Text], negatives: Sequence[Text | None]
    ) -> dict[Place, torch.Tensor]:
        """Sample latents, (1, C, h, w), by the numbers of prompt and image, both from 1."""
        height, width = self._size.height // VAE_FACTOR, self._size.width // VAE_FACTOR
        shape = (1, self._sampler.channels, height, width)
        found = {}
        rows = zip(self._config.sample_prompts, texts, negatives, strict=True)
        for number, (prompt, text, negative) in enumerate(rows, start=1):
            for image in range(1, self._config.num_validation_images_per_prompt + 1):
                self._stop.check()
                # Placed by its text, a prompt keeps its noise when others are added or removed.
                noise = self._rng.normal(shape, "validation", prompt, image).to(self._device)
                with self._precision.autocast():
                    found[number, image] = self._sampler.sample(noise, text, negative, self._size)
        return found

    def _write(self, step: int, latents: dict[Place, torch.Tensor]) -> tuple[Artifact, ...]:
        """Decode the latents and store the images; images with NaN or infinity are left out."""
        prefix = validation_prefix(self._request.job_id, step, self._request.start_id)
        scratch = Path(self._request.scratch_dir)
        scratch.mkdir(parents=True, exist_ok=True)
        vae = self._models.vae or load_vae(self._config, self._device)
        artifacts = []
        for (prompt, number), z in latents.items():
            self._stop.check()
            image = self._decoded(vae, z)
            name = f"validation-{step:06d}-{prompt}-{number}.png"
            if image is None:
                message = f"{name} holds NaN or infinity and is left out"
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
        """Decode latents (1, C, h, w); return None if the image holds NaN or infinity."""
        scaling = self._models.vae_scaling
        z = z.float() / scaling.scaling_factor + scaling.shift_factor  # (1, C, h, w)
        values = vae.decode(z, return_dict=False)[0]  # (1, 3, H, W)
        if not values.isfinite().all():
            return None
        image: Image.Image = VaeImageProcessor().postprocess(values)[0]
        return image

    @contextmanager
    def _off_the_gpu(self, *modules: torch.nn.Module) -> Iterator[None]:
        """Keep modules in main memory until the context ends, if the config asks for it."""
        if not self._config.enable_cpu_offload_during_validation:
            yield
            return
        moved = [m for m in modules if m is not self._denoiser or self._models.denoiser_moves]
        for module in moved:
            module.to("cpu")
        release_memory()
        try:
            yield
        finally:
            # Module.to keeps the parameter objects, which the optimizer refers to.
            for module in moved:
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
