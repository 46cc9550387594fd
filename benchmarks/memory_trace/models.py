"""FLUX's and SDXL's models at their real size, as their published configs describe them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.flux.pipeline_flux import FluxPipeline
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import (
    StableDiffusionXLPipeline,
)
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    T5Config,
    T5EncoderModel,
)

from benchmarks.memory_trace.kernels import CUDA
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
        transformer = _built(lambda: _transformer(depth), dtype)
        if config.quantization is not None:
            quantize(transformer, config.quantization, CUDA)
        return FluxModels(transformer, scaling, vae, text)
    trained = config.type == "SDXL_FINETUNE"
    unet = _built(lambda: _unet(depth), torch.float32 if trained else dtype)
    return SdxlModels(unet, scaling, vae, text, DDPMScheduler())


def vae_of(config: PipelineConfig) -> AutoencoderKL:
    """Return the VAE, in float32."""
    is_flux = config.type == "FLUX_LORA"
    vae: AutoencoderKL = _built(
        lambda: AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(128, 256, 512, 512),
            layers_per_block=2,
            latent_channels=16 if is_flux else 4,
            use_quant_conv=not is_flux,
            use_post_quant_conv=not is_flux,
        ),
        torch.float32,
    )
    return vae


def text_of(config: PipelineConfig) -> FluxText | SdxlText:
    """Return the text encoders; their tokenizers are tiny, and fill as many tokens."""
    dtype = getattr(torch, config.weight_dtype)
    parts: dict[str, Any] = {
        "text_encoder": _built(lambda: _clip(CLIPTextModel, 768, 12, 12), dtype),
        "tokenizer": clip_tokenizer(),
        "vae": None,
        "scheduler": None,
    }
    if isinstance(config, FluxLoraConfig):
        parts |= {"text_encoder_2": _built(_t5, dtype), "tokenizer_2": t5_tokenizer()}
        flux = FluxPipeline(**parts | {"transformer": None})
        flux.tokenizer_max_length = config.clip_tokenizer_max_length
        return FluxText(flux, config.t5_tokenizer_max_length, CUDA)
    second = _built(lambda: _clip(CLIPTextModelWithProjection, 1280, 32, 20), dtype)
    parts |= {"text_encoder_2": second, "tokenizer_2": clip_tokenizer(), "unet": None}
    return SdxlText(StableDiffusionXLPipeline(**parts, add_watermarker=False), CUDA)


def _transformer(depth: Depth) -> FluxTransformer2DModel:
    model: FluxTransformer2DModel = FluxTransformer2DModel(
        num_layers=depth.double, num_single_layers=depth.single, guidance_embeds=True
    )
    return model


def _unet(depth: Depth) -> UNet2DConditionModel:
    model: UNet2DConditionModel = UNet2DConditionModel(
        sample_size=128,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(320, 640, 1280),
        transformer_layers_per_block=(1, 2, depth.deepest),
        attention_head_dim=(5, 10, 20),
        cross_attention_dim=2048,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=2816,
    )
    return model


def _clip(kind: Any, width: int, layers: int, heads: int) -> torch.nn.Module:
    model: torch.nn.Module = kind(
        CLIPTextConfig(
            hidden_size=width,
            intermediate_size=4 * width,
            projection_dim=width,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            bos_token_id=49406,
            eos_token_id=49407,
        )
    )
    return model


def _t5() -> T5EncoderModel:
    return T5EncoderModel(
        T5Config(
            d_model=4096,
            d_kv=64,
            d_ff=10240,
            num_layers=24,
            num_heads=64,
            feed_forward_proj="gated-gelu",
        )
    )


def _built(make: Callable[[], torch.nn.Module], dtype: torch.dtype) -> Any:
    """Return a model on the device, frozen."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(CUDA):
            model = make()
    finally:
        torch.set_default_dtype(before)
    for name, module in model.named_modules():
        if dtype == torch.float16 and name.endswith(".wo"):
            module.float()  # transformers keeps these of T5 in float32
    return model.requires_grad_(False).eval()
