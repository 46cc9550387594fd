"""SDXL's UNet, text encoders and noise schedule: loaded, frozen and checked, onto a device."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import (
    StableDiffusionXLPipeline,
)
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from tasks.base_models.files import (
    base_model_folder,
    fingerprint,
    json_object,
    vae_config,
)
from tasks.base_models.noise_schedule import noise_schedule
from tasks.jobs.sdxl import SdxlConfig
from worker.trainer.base_model import (
    TEXT_PARTS,
    check_vocabulary,
    load_encoder,
    needed_specs,
    readable,
    stored_weights,
)
from worker.trainer.data.cache_entries import Text
from worker.trainer.data.inputs import VaeScaling
from worker.trainer.model_cache import ModelCache, ModelSpec
from worker.trainer.training_type import Models
from worker.trainer.weights import empty_model, load_weights


class SdxlText:
    """Both text encoders, as StableDiffusionXLPipeline uses them.

    Args:
        pipeline: A pipeline of the encoders and their tokenizers.
        device: The device of the encoders.
    """

    def __init__(self, pipeline: StableDiffusionXLPipeline, device: torch.device) -> None:
        self.pipeline = pipeline
        self._device = device

    @property
    def encoders(self) -> dict[str, torch.nn.Module]:
        """Both encoders by the names of their folders and weights."""
        return {
            "text_encoder": self.pipeline.text_encoder,
            "text_encoder_2": self.pipeline.text_encoder_2,
        }

    @property
    def tokenizers(self) -> dict[str, Any]:
        """Both tokenizers by their encoders' names."""
        return {
            "text_encoder": self.pipeline.tokenizer,
            "text_encoder_2": self.pipeline.tokenizer_2,
        }

    def to(self, device: torch.device | str) -> None:
        """Move the encoders."""
        for encoder in self.encoders.values():
            encoder.to(device)

    def encode(self, captions: Sequence[str]) -> Text:
        """Encode captions: both encoders' states, (B, 77, 2048), the second's pooled, (B, 1280)."""
        pipeline: Any = self.pipeline
        prompt_embeds, _, pooled, _ = pipeline.encode_prompt(
            prompt=list(captions), device=self._device, do_classifier_free_guidance=False
        )
        return Text(prompt_embeds, pooled)


def unet_blocks(unet: UNet2DConditionModel) -> list[torch.nn.Module]:
    """Return the UNet's blocks in the order of the forward pass: 3 down, the middle, 3 up."""
    return [*unet.down_blocks, unet.mid_block, *unet.up_blocks]


@dataclass(frozen=True)
class SdxlModels(Models[UNet2DConditionModel, SdxlText]):
    """SDXL's models on the device.

    Attributes:
        scheduler: The base model's noise levels, and what the UNet predicts.
    """

    scheduler: DDPMScheduler


def take_models(
    config: SdxlConfig,
    device: torch.device,
    cache: ModelCache,
    text_spec: Callable[[], ModelSpec],
    unet_dtype: torch.dtype | None = None,
) -> SdxlModels:
    """Return the models of a run; those whose outputs are cached stay off the device.

    Args:
        config: The run's config.
        device: The device that computes.
        cache: Models of earlier requests.
        text_spec: Describes the text encoders; called if their outputs are not cached.
        unet_dtype: The precision of the UNet's weights; None for the config's.

    Raises:
        BaseModelFilesError: A file is missing or unreadable.
        VocabularyError: A tokenizer does not belong to its encoder.
    """
    # Small files first: their errors are reported before any weights are loaded.
    scaling = VaeScaling(vae_config(config))
    unet = _unet_spec(config, device, unet_dtype or getattr(torch, config.weight_dtype))
    specs = needed_specs(config, device, unet, text_spec)
    scheduler = load_noise_scheduler(config)
    found = cache.take(device, specs)
    return SdxlModels(found["denoiser"], scaling, found.get("vae"), found.get("text"), scheduler)


def frozen_text_spec(
    config: SdxlConfig,
    device: torch.device,
    extra_files: Sequence[str] = (),
    extra_identity: object = None,
    extend: Callable[[SdxlText], None] = lambda text: None,
) -> ModelSpec:
    """Describe both text encoders.

    Args:
        config: The run's config.
        device: The device of the encoders.
        extra_files: Files beside the base model's that decide the encoders.
        extra_identity: Options that decide the encoders, hashable.
        extend: Called with the loaded encoders.
    """

    def load() -> SdxlText:
        text = SdxlText(load_text_encoders(config, device), device)
        extend(text)
        return text

    files = fingerprint(config, ("text_encoder", "text_encoder_2"), extra_files)
    return ModelSpec((config.type, config.weight_dtype, extra_identity, files), load)


def _unet_spec(config: SdxlConfig, device: torch.device, dtype: torch.dtype) -> ModelSpec:
    identity = (str(dtype), fingerprint(config, ("unet",), ()))
    return ModelSpec(identity, lambda: load_unet(config, device, dtype))


def load_unet(config: SdxlConfig, device: torch.device, dtype: torch.dtype) -> UNet2DConditionModel:
    """Load the UNet, frozen.

    Raises:
        BaseModelFilesError: A file is missing or unreadable.
    """
    described, weights = stored_weights(config, "unet")
    with readable(config.model):
        unet: UNet2DConditionModel = empty_model(UNet2DConditionModel, described)
        load_weights(unet, weights, dtype, device)
    return unet


def load_text_encoders(config: SdxlConfig, device: torch.device) -> StableDiffusionXLPipeline:
    """Load an SDXL pipeline of both text encoders and nothing else, for its ``encode_prompt``.

    Raises:
        BaseModelFilesError: A file is missing or unreadable.
        VocabularyError: A tokenizer does not belong to its encoder.
    """
    folder = base_model_folder(config, TEXT_PARTS)
    with readable(config.model):
        tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
        tokenizer_2 = CLIPTokenizer.from_pretrained(folder / "tokenizer_2")
        first = load_encoder(CLIPTextModel, config, folder, "text_encoder", device)
        second = load_encoder(CLIPTextModelWithProjection, config, folder, "text_encoder_2", device)
    check_vocabulary(config.model, "tokenizer", tokenizer, first)
    check_vocabulary(config.model, "tokenizer_2", tokenizer_2, second)
    # The signature takes no None for a component; the code does.
    new_pipeline: Any = StableDiffusionXLPipeline
    pipeline: StableDiffusionXLPipeline = new_pipeline(
        vae=None,
        text_encoder=first,
        text_encoder_2=second,
        tokenizer=tokenizer,
        tokenizer_2=tokenizer_2,
        unet=None,
        scheduler=None,
        add_watermarker=False,
    )
    return pipeline


def load_noise_scheduler(config: SdxlConfig) -> DDPMScheduler:
    """Load the noise levels that the run trains at, and what its UNet predicts.

    Raises:
        BaseModelFilesError: The base model has no scheduler.
    """
    folder = base_model_folder(config, ("scheduler",))
    values = json_object(folder, "scheduler/scheduler_config.json")
    given = noise_schedule(config).scheduler_values
    scheduler: DDPMScheduler = DDPMScheduler.from_config(values, **given)
    return scheduler
