"""Loads FLUX's text encoders with their tokenizers, and any VAE, checked, onto a device."""

from pathlib import Path
from typing import Any

import torch
from diffusers.loaders.single_file_utils import SingleFileComponentError
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.pipelines.flux.pipeline_flux import FluxPipeline
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import CLIPTextModel, CLIPTokenizer, T5EncoderModel, T5Tokenizer

from tasks.base_models.files import (
    base_model_folder,
    existing_file,
    part_config,
    single_file,
    vae_folder,
    variant,
)
from tasks.errors import BaseModelFilesError
from tasks.jobs.flux_lora import FluxLoraConfig
from tasks.jobs.pipeline import PipelineConfig
from worker.trainer.errors import VocabularyError, WeightsMismatchError

TEXT_PARTS = ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")
# A tokenizer may hold fewer tokens than its encoder's table, which is padded (T5: 32100 of 32128),
# but never this few of them.
_LEAST_SHARE = 0.5


def load_text_encoders(config: FluxLoraConfig, device: torch.device) -> FluxPipeline:
    """A FLUX pipeline of both text encoders and nothing else, for its ``encode_prompt``.

    Raises:
        BaseModelFilesError: A file is missing or unreadable.
        VocabularyError: A tokenizer does not belong to its encoder.
        WeightsMismatchError: An override does not fit.
    """
    folder = base_model_folder(config, TEXT_PARTS)
    dtype = getattr(torch, config.weight_dtype)
    try:
        tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
        tokenizer_2 = T5Tokenizer.from_pretrained(folder / "tokenizer_2")
        clip, t5 = _own_encoders(config, folder, dtype)
    except (OSError, ValueError, SafetensorError, SingleFileComponentError) as error:
        raise BaseModelFilesError(config.model, str(error).partition("\n")[0]) from error
    check_vocabulary(config.model, "tokenizer", tokenizer, clip)
    check_vocabulary(config.model, "tokenizer_2", tokenizer_2, t5)
    # Its signature has no place for a pipeline of a part of the components; its code has.
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


def load_vae(config: PipelineConfig, device: torch.device) -> AutoencoderKL:
    """The VAE in float32: in half precision SDXL's overflows, and FLUX's loses what matters.

    Raises:
        BaseModelFilesError: A file is missing or unreadable.
    """
    folder = vae_folder(config)
    part_config(folder.parent, folder.name)
    file = None if getattr(config, "vae_model", None) else single_file(config)
    try:
        if file is None:
            vae: AutoencoderKL = AutoencoderKL.from_pretrained(
                folder,
                use_safetensors=True,
                variant=variant(config, folder),
                torch_dtype=torch.float32,
            )
        else:
            vae = AutoencoderKL.from_single_file(
                str(file),
                config=str(folder.parent),
                subfolder=folder.name,
                local_files_only=True,
                torch_dtype=torch.float32,
            )
    except (OSError, ValueError, SafetensorError, SingleFileComponentError) as error:
        raise BaseModelFilesError(config.model, str(error).partition("\n")[0]) from error
    vae.eval().requires_grad_(False).to(device)  # type: ignore[arg-type] # its decorator hides it
    return vae


def _own_encoders(config: FluxLoraConfig, folder: Path, dtype: torch.dtype) -> tuple[Any, Any]:
    """CLIP and T5: of the overrides, of the single file, or of the folder."""
    file, paths = single_file(config), (config.text_encoder_1_path, config.text_encoder_2_path)
    found: dict[str, Any] = {}
    if file is not None and None in paths:
        # Only what is not overridden; parts that are passed as None are not loaded.
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
    # Through from_pretrained, which knows older names of the same keys.
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
    # A buffer that older files hold and newer models compute.
    extra = {key for key in extra if not key.endswith("position_ids")}
    if missing or extra:
        raise WeightsMismatchError(str(path), kind.__name__, missing, extra)
    return model


def check_vocabulary(model: str, part: str, tokenizer: Any, encoder: Any) -> None:
    """A tokenizer folder without vocabulary files loads silently, with its special tokens only."""
    tokens, size = len(tokenizer), encoder.config.vocab_size
    if not size * _LEAST_SHARE <= tokens <= size:
        raise VocabularyError(model, part, tokens, size)
