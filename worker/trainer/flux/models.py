"""FLUX's transformer and text encoders: loaded, frozen and checked, onto a device."""

from collections.abc import Sequence
from typing import Any

import torch
from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel
from diffusers.pipelines.flux.pipeline_flux import FluxPipeline
from transformers import CLIPTextModel, CLIPTokenizer, T5EncoderModel, T5Tokenizer

from tasks.base_models.files import (
    base_model_folder,
    fingerprint,
    vae_config,
)
from tasks.jobs.flux_lora import FluxLoraConfig
from worker.trainer.base_model import (
    TEXT_PARTS,
    check_vocabulary,
    existing_files,
    load_encoder,
    needed_specs,
    readable,
    stored_weights,
)
from worker.trainer.data.cache_entries import Text
from worker.trainer.data.inputs import VaeScaling
from worker.trainer.flux.quantization import quantize
from worker.trainer.model_cache import ModelCache, ModelSpec
from worker.trainer.training_type import Models
from worker.trainer.weights import empty_model, load_weights


class FluxText:
    """CLIP and T5, as FluxPipeline uses them.

    Args:
        pipeline: A pipeline of both encoders and their tokenizers.
        t5_length: Tokens that T5 sees.
        device: The device of the encoders.
    """

    def __init__(self, pipeline: FluxPipeline, t5_length: int, device: torch.device) -> None:
        self.pipeline = pipeline
        self._t5_length = t5_length
        self._device = device

    @property
    def encoders(self) -> dict[str, torch.nn.Module]:
        """CLIP and T5 by the names of their folders and weights."""
        return {
            "text_encoder": self.pipeline.text_encoder,
            "text_encoder_2": self.pipeline.text_encoder_2,
        }

    def to(self, device: torch.device | str) -> None:
        """Move the encoders."""
        for encoder in self.encoders.values():
            encoder.to(device)

    def encode(self, captions: Sequence[str]) -> Text:
        """Encode captions: T5's states, (B, t5_length, 4096), and CLIP's pooled, (B, 768)."""
        prompt_embeds, pooled, _ = self.pipeline.encode_prompt(
            prompt=list(captions), device=self._device, max_sequence_length=self._t5_length
        )
        return Text(prompt_embeds, pooled)

    def encode_states(self, captions: Sequence[str]) -> torch.Tensor:
        """Encode captions by T5 alone, (B, t5_length, 4096)."""
        pipeline: Any = self.pipeline
        states: torch.Tensor = pipeline._get_t5_prompt_embeds(
            list(captions), max_sequence_length=self._t5_length, device=self._device
        )
        return states

    def encode_pooled(self, captions: Sequence[str]) -> torch.Tensor:
        """Encode captions by CLIP alone, (B, 768)."""
        pipeline: Any = self.pipeline
        pooled: torch.Tensor = pipeline._get_clip_prompt_embeds(list(captions), device=self._device)
        return pooled


FluxModels = Models[FluxTransformer2DModel, FluxText]


def take_models(config: FluxLoraConfig, device: torch.device, cache: ModelCache) -> FluxModels:
    """Return the models of a run; those whose outputs are cached stay off the device.

    Raises:
        BaseModelFilesError: A file is missing or unreadable.
        VocabularyError: A tokenizer does not belong to its encoder.
    """
    # Small files first: their errors are reported before any weights are loaded.
    scaling = VaeScaling(vae_config(config))
    denoiser = _transformer_spec(config, device)
    specs = needed_specs(config, device, denoiser, lambda: text_spec(config, device))
    found = cache.take(device, specs)
    vae, text = found.get("vae"), found.get("text")
    return FluxModels(found["denoiser"], scaling, vae, text, denoiser_moves=denoiser.movable)


def text_spec(config: FluxLoraConfig, device: torch.device) -> ModelSpec:
    """Describe both text encoders."""
    paths = (config.text_encoder_1_path, config.text_encoder_2_path)
    lengths = (config.clip_tokenizer_max_length, config.t5_tokenizer_max_length)
    files = fingerprint(config, ("text_encoder", "text_encoder_2"), existing_files(*paths))
    identity = (config.type, config.weight_dtype, paths, lengths, files)
    return ModelSpec(
        identity, lambda: FluxText(load_text_encoders(config, device), lengths[1], device)
    )


def _transformer_spec(config: FluxLoraConfig, device: torch.device) -> ModelSpec:
    files = fingerprint(config, ("transformer",), existing_files(config.transformer_path))
    identity = (config.transformer_path, config.weight_dtype, config.quantization, files)
    movable = config.quantization is None
    return ModelSpec(identity, lambda: load_transformer(config, device), movable)


def load_transformer(config: FluxLoraConfig, device: torch.device) -> FluxTransformer2DModel:
    """Load the transformer of the base model, or of ``transformer_path``, frozen.

    Raises:
        BaseModelFilesError: A file is missing or unreadable.
    """
    described, weights = stored_weights(config, "transformer")
    dtype = getattr(torch, config.weight_dtype)
    model: FluxTransformer2DModel = empty_model(FluxTransformer2DModel, described)

    def load(path: str = "") -> None:
        with readable(config.transformer_path or config.model):
            load_weights(model, weights, dtype, device, path)

    if config.quantization is not None:
        quantize(model, config.quantization, device, load)
    else:
        load()
    return model


def load_text_encoders(config: FluxLoraConfig, device: torch.device) -> FluxPipeline:
    """Load a FLUX pipeline of both text encoders and nothing else, for its ``encode_prompt``.

    Raises:
        BaseModelFilesError: A file is missing or unreadable.
        VocabularyError: A tokenizer does not belong to its encoder.
    """
    folder = base_model_folder(config, TEXT_PARTS)
    with readable(config.model):
        tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
        tokenizer_2 = T5Tokenizer.from_pretrained(folder / "tokenizer_2")
        clip = load_encoder(CLIPTextModel, config, folder, "text_encoder", device)
        t5 = load_encoder(T5EncoderModel, config, folder, "text_encoder_2", device)
    check_vocabulary(config.model, "tokenizer", tokenizer, clip)
    check_vocabulary(config.model, "tokenizer_2", tokenizer_2, t5)
    # The signature takes no None for a component; the code does.
    new_pipeline: Any = FluxPipeline
    pipeline: FluxPipeline = new_pipeline(
        scheduler=None,
        vae=None,
        text_encoder=clip,
        tokenizer=tokenizer,
        text_encoder_2=t5,
        tokenizer_2=tokenizer_2,
        transformer=None,
    )
    pipeline.tokenizer_max_length = config.clip_tokenizer_max_length
    return pipeline
