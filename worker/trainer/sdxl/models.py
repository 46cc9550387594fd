"""Loads SDXL's UNet, text encoders and noise schedule, frozen and checked, onto a device."""

from pathlib import Path
from typing import Any

import torch
from diffusers.loaders.single_file_utils import SingleFileComponentError
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import (
    StableDiffusionXLPipeline,
)
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from safetensors import SafetensorError
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from tasks.base_models.files import (
    base_model_folder,
    json_object,
    part_config,
    single_file,
    variant,
)
from tasks.errors import BaseModelFilesError
from tasks.jobs.sdxl import SdxlConfig
from worker.trainer.encoders import TEXT_PARTS, check_vocabulary

_UNREADABLE = (OSError, ValueError, SafetensorError, SingleFileComponentError)


def load_unet(config: SdxlConfig, device: torch.device, dtype: torch.dtype) -> UNet2DConditionModel:
    """The UNet, frozen.

    Raises:
        BaseModelFilesError: A file is missing or unreadable.
    """
    folder = base_model_folder(config, ("unet",))
    part_config(folder, "unet")
    file = single_file(config)
    try:
        if file is None:
            unet: UNet2DConditionModel = UNet2DConditionModel.from_pretrained(
                folder,
                subfolder="unet",
                use_safetensors=True,
                variant=variant(config, folder / "unet"),
                torch_dtype=dtype,
            )
        else:
            unet = UNet2DConditionModel.from_single_file(
                str(file),
                config=str(folder),
                subfolder="unet",
                local_files_only=True,
                torch_dtype=dtype,
            )
    except _UNREADABLE as error:
        raise BaseModelFilesError(config.model, str(error).partition("\n")[0]) from error
    unet.requires_grad_(False).to(device)  # type: ignore[arg-type] # its decorator hides it
    return unet


def load_sdxl_text_encoders(config: SdxlConfig, device: torch.device) -> StableDiffusionXLPipeline:
    """An SDXL pipeline of both text encoders and nothing else, for its ``encode_prompt``.

    Raises:
        BaseModelFilesError: A file is missing or unreadable.
        VocabularyError: A tokenizer does not belong to its encoder.
    """
    folder = base_model_folder(config, TEXT_PARTS)
    try:
        tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
        tokenizer_2 = CLIPTokenizer.from_pretrained(folder / "tokenizer_2")
        first, second = _encoders(config, folder)
    except _UNREADABLE as error:
        raise BaseModelFilesError(config.model, str(error).partition("\n")[0]) from error
    check_vocabulary(config.model, "tokenizer", tokenizer, first)
    check_vocabulary(config.model, "tokenizer_2", tokenizer_2, second)
    # Its signature has no place for a pipeline of a part of the components; its code has.
    new_pipeline: Any = StableDiffusionXLPipeline
    pipeline: StableDiffusionXLPipeline = new_pipeline(
        vae=None,
        text_encoder=first.eval().requires_grad_(False).to(device),
        text_encoder_2=second.eval().requires_grad_(False).to(device),
        tokenizer=tokenizer,
        tokenizer_2=tokenizer_2,
        unet=None,
        scheduler=None,
        add_watermarker=False,
    )
    return pipeline


def load_noise_scheduler(config: SdxlConfig) -> DDPMScheduler:
    """The base model's noise levels, and what its UNet predicts unless the config says another.

    Raises:
        BaseModelFilesError: It has no scheduler.
    """
    folder = base_model_folder(config, ("scheduler",))
    values = json_object(folder, "scheduler/scheduler_config.json")
    given = {} if config.prediction_type is None else {"prediction_type": config.prediction_type}
    scheduler: DDPMScheduler = DDPMScheduler.from_config(values, **given)
    return scheduler


def _encoders(config: SdxlConfig, folder: Path) -> tuple[Any, Any]:
    file, dtype = single_file(config), getattr(torch, config.weight_dtype)
    if file is not None:
        # Parts that are passed as None are not loaded.
        whole: Any = StableDiffusionXLPipeline.from_single_file(
            str(file),
            config=str(folder),
            local_files_only=True,
            torch_dtype=dtype,
            unet=None,
            vae=None,
            scheduler=None,
        )
        return whole.text_encoder, whole.text_encoder_2
    kinds = {"text_encoder": CLIPTextModel, "text_encoder_2": CLIPTextModelWithProjection}
    found = []
    for part, kind in kinds.items():
        part_config(folder, part)
        wanted = variant(config, folder / part)
        found.append(
            kind.from_pretrained(
                folder, subfolder=part, use_safetensors=True, variant=wanted, dtype=dtype
            )
        )
    return found[0], found[1]
