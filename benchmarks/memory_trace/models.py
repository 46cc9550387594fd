"""The models of a run, on the fake device."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.pipelines.flux.pipeline_flux import FluxPipeline
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import (
    StableDiffusionXLPipeline,
)
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

from benchmarks.memory_trace.kernels import CUDA
from benchmarks.real_models import (
    clip_g,
    clip_l,
    flux_transformer,
    flux_vae,
    new_weights,
    sdxl_unet,
    sdxl_vae,
    t5_xxl,
)
from tasks.jobs.flux_lora import FluxLoraConfig
from tasks.jobs.pipeline import PipelineConfig
from worker.trainer.data.inputs import VaeScaling
from worker.trainer.flux.models import FluxModels, FluxText
from worker.trainer.flux.quantization import quantize
from worker.trainer.sdxl.models import SdxlModels, SdxlText
from worker.trainer.tiny_models import clip_tokenizer, t5_tokenizer
from worker.trainer.training_type import Models


@dataclass(frozen=True)
class Depth:
    """The blocks of the denoisers; fewer than the real number make a trace short.

    Attributes:
        double: FLUX's double blocks.
        single: FLUX's single blocks.
        deepest: The blocks of each of SDXL's deepest transformers.
    """

    double: int = 19
    single: int = 38
    deepest: int = 10


FULL = Depth()


def models_of(config: PipelineConfig, depth: Depth) -> Models[Any, Any]:
    """Return the models that a run keeps on the device, as ``take_models`` loads them."""
    dtype = getattr(torch, config.weight_dtype)
    vae = None if config.cache_vae_outputs else vae_of(config)
    text: Any = None if config.caches_text else text_of(config)
    scaling = VaeScaling({"scaling_factor": 1.0})
    if isinstance(config, FluxLoraConfig):
        transformer = _built(lambda: flux_transformer(depth.double, depth.single), dtype)
        if config.quantization is not None:
            quantize(transformer, config.quantization, CUDA)
        return FluxModels(transformer, scaling, vae, text)
    trained = config.type == "SDXL_FINETUNE"
    unet = _built(lambda: sdxl_unet(depth.deepest), torch.float32 if trained else dtype)
    return SdxlModels(unet, scaling, vae, text, DDPMScheduler())


def vae_of(config: PipelineConfig) -> AutoencoderKL:
    """Return the VAE, in float32."""
    make = flux_vae if config.type == "FLUX_LORA" else sdxl_vae
    vae: AutoencoderKL = _built(make, torch.float32)
    return vae


def text_of(config: PipelineConfig) -> FluxText | SdxlText:
    """Return the text encoders; their tokenizers are tiny, and fill as many tokens."""
    dtype = getattr(torch, config.weight_dtype)
    parts: dict[str, Any] = {
        "text_encoder": _built(clip_l, dtype),
        "tokenizer": clip_tokenizer(),
        "vae": None,
        "scheduler": None,
    }
    if isinstance(config, FluxLoraConfig):
        parts |= {"text_encoder_2": _built(t5_xxl, dtype), "tokenizer_2": t5_tokenizer()}
        flux = FluxPipeline(**parts | {"transformer": None})
        flux.tokenizer_max_length = config.clip_tokenizer_max_length
        return FluxText(flux, config.t5_tokenizer_max_length, CUDA)
    second = _built(clip_g, dtype)
    parts |= {"text_encoder_2": second, "tokenizer_2": clip_tokenizer(), "unet": None}
    return SdxlText(StableDiffusionXLPipeline(**parts, add_watermarker=False), CUDA)


def _built(make: Callable[[], torch.nn.Module], dtype: torch.dtype) -> Any:
    """Return a model on the device, frozen."""
    with new_weights(CUDA, dtype):
        model = make()
    for name, module in model.named_modules():
        if dtype == torch.float16 and name.endswith(".wo"):
            module.float()  # transformers keeps these of T5 in float32
    return model.requires_grad_(False).eval()
