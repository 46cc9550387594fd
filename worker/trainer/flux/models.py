"""FLUX's transformer and text encoders: loaded, frozen and checked, onto a device."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel
from diffusers.pipelines.flux.pipeline_flux import FluxPipeline
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import CLIPTextModel, CLIPTokenizer, T5EncoderModel, T5Tokenizer

from tasks.base_models.files import (
    base_model_folder,
    existing_file,
    fingerprint,
    part_config,
    single_file,
    vae_config,
)
from tasks.jobs.flux_lora import FluxLoraConfig
from worker.trainer.base_model import (
    TEXT_PARTS,
    check_vocabulary,
    existing_files,
    needed_specs,
    readable,
)
from worker.trainer.data.cache_entries import Text
from worker.trainer.data.inputs import VaeScaling
from worker.trainer.errors import WeightsMismatchError
from worker.trainer.flux.quantization import quantize
from worker.trainer.model_cache import ModelCache, ModelSpec
from worker.trainer.training_type import Models


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
        WeightsMismatchError: An override does not fit.
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
        WeightsMismatchError: The override does not fit.
    """
    folder = base_model_folder(config, ("transformer",))
    part_config(folder, "transformer")
    dtype = getattr(torch, config.weight_dtype)
    file = single_file(config)
    with readable(config.transformer_path or config.model):
        if config.transformer_path is None and file is not None:
            model: FluxTransformer2DModel = _from_original(file, folder, dtype)
        elif config.transformer_path is None:
            model = FluxTransformer2DModel.from_pretrained(
                folder, subfolder="transformer", use_safetensors=True, torch_dtype=dtype
            )
        else:
            model = _from_file(existing_file(config.transformer_path), folder, dtype)
    model.requires_grad_(False)
    if config.quantization is not None:
        quantize(model, config.quantization, device)
    else:
        model.to(device)  # type: ignore[arg-type] # its decorator hides it
    return model


def load_text_encoders(config: FluxLoraConfig, device: torch.device) -> FluxPipeline:
    """Load a FLUX pipeline of both text encoders and nothing else, for its ``encode_prompt``.

    Raises:
        BaseModelFilesError: A file is missing or unreadable.
        VocabularyError: A tokenizer does not belong to its encoder.
        WeightsMismatchError: An override does not fit.
    """
    folder = base_model_folder(config, TEXT_PARTS)
    dtype = getattr(torch, config.weight_dtype)
    with readable(config.model):
        tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
        tokenizer_2 = T5Tokenizer.from_pretrained(folder / "tokenizer_2")
        clip, t5 = _clip_and_t5(config, folder, dtype)
    check_vocabulary(config.model, "tokenizer", tokenizer, clip)
    check_vocabulary(config.model, "tokenizer_2", tokenizer_2, t5)
    # The signature takes no None for a component; the code does.
    new_pipeline: Any = FluxPipeline
    pipeline: FluxPipeline = new_pipeline(
        scheduler=None,
        vae=None,
        text_encoder=clip.eval().requires_grad_(False).to(device),
        tokenizer=tokenizer,
        text_encoder_2=t5.eval().requires_grad_(False).to(device),
        tokenizer_2=tokenizer_2,
        transformer=None,
    )
    pipeline.tokenizer_max_length = config.clip_tokenizer_max_length
    return pipeline


def _from_original(path: Path, folder: Path, dtype: torch.dtype) -> FluxTransformer2DModel:
    """Load a file with the original model's tensor names."""
    model: FluxTransformer2DModel = FluxTransformer2DModel.from_single_file(
        str(path),
        config=str(folder),
        subfolder="transformer",
        local_files_only=True,
        torch_dtype=dtype,
    )
    return model


def _from_file(path: Path, folder: Path, dtype: torch.dtype) -> FluxTransformer2DModel:
    with safe_open(path, framework="pt") as file:
        names = set(file.keys())
    if any("double_blocks." in name for name in names):
        # Black Forest Labs' own names, which ComfyUI keeps too.
        return _from_original(path, folder, dtype)
    with torch.device("meta"):
        model: FluxTransformer2DModel = FluxTransformer2DModel.from_config(
            part_config(folder, "transformer")
        )
    expected = model.state_dict()
    tensors = load_file(path)
    wrong = {name for name in names & set(expected) if tensors[name].shape != expected[name].shape}
    missing, extra = (set(expected) - names) | wrong, names - set(expected)
    if missing or extra:
        raise WeightsMismatchError(str(path), "FLUX transformer", missing, extra)
    model.load_state_dict({name: tensor.to(dtype) for name, tensor in tensors.items()}, assign=True)
    return model


def _clip_and_t5(config: FluxLoraConfig, folder: Path, dtype: torch.dtype) -> tuple[Any, Any]:
    """Load both from the overrides, the single file or the folder."""
    file, paths = single_file(config), (config.text_encoder_1_path, config.text_encoder_2_path)
    found: dict[str, Any] = {}
    if file is not None and None in paths:
        # diffusers does not load parts that are passed as None: load those without an override.
        skipped = {"transformer": None, "vae": None, "scheduler": None}
        names = zip(("text_encoder", "text_encoder_2"), paths, strict=True)
        skipped |= {name: None for name, path in names if path is not None}
        pipeline: Any = FluxPipeline.from_single_file(
            str(file), config=str(folder), local_files_only=True, torch_dtype=dtype, **skipped
        )
        found = {"text_encoder": pipeline.text_encoder, "text_encoder_2": pipeline.text_encoder_2}
    clip = found.get("text_encoder") or _encoder(
        CLIPTextModel, folder, "text_encoder", paths[0], dtype
    )
    t5 = found.get("text_encoder_2") or _encoder(
        T5EncoderModel, folder, "text_encoder_2", paths[1], dtype
    )
    return clip, t5


def _encoder(kind: Any, folder: Path, part: str, override: str | None, dtype: torch.dtype) -> Any:
    part_config(folder, part)
    if override is None:
        return kind.from_pretrained(folder, subfolder=part, use_safetensors=True, dtype=dtype)
    path = existing_file(override)
    config = kind.config_class.from_pretrained(folder / part)
    # from_pretrained also maps older names of the same keys.
    model, found = kind.from_pretrained(
        None,
        config=config,
        state_dict=load_file(path),
        dtype=dtype,
        output_loading_info=True,
        ignore_mismatched_sizes=True,
    )
    wrong = {str(key[0]) for key in found["mismatched_keys"]}
    missing, extra = set(found["missing_keys"]) | wrong, set(found["unexpected_keys"])
    # Older files hold this buffer, newer models compute it.
    extra = {key for key in extra if not key.endswith("position_ids")}
    if missing or extra:
        raise WeightsMismatchError(str(path), kind.__name__, missing, extra)
    return model
