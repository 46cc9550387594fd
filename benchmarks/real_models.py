"""FLUX and SDXL at their real size with random weights, as diffusers folders.

What a card computes with them costs the same time and memory as with published weights. T5 alone
has one layer instead of 24: it takes no part in a training step with cached captions.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.flux.pipeline_flux import FluxPipeline
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import (
    StableDiffusionXLPipeline,
)
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler
from diffusers.schedulers.scheduling_flow_match_euler_discrete import (
    FlowMatchEulerDiscreteScheduler,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
)

from worker.trainer.tiny_models import clip_tokenizer, t5_tokenizer, write_older_tokenizers

# Of a weight matrix; so small that 57 blocks of them stay within bfloat16's range.
_DEVIATION = 0.02


def build_flux(folder: Path, device: str) -> Path:
    """Build a diffusers folder of FLUX.1-dev's sizes, 24 GB in bfloat16.

    Args:
        folder: A new folder.
        device: Where the weights are drawn: ``cuda`` takes seconds, ``cpu`` minutes.

    Returns:
        The folder.
    """
    clip, t5_pieces = clip_tokenizer(), t5_tokenizer()
    torch.manual_seed(0)
    with new_weights(device, torch.bfloat16):
        pipeline = FluxPipeline(
            scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
            vae=flux_vae(),
            text_encoder=clip_l(clip),
            tokenizer=clip,
            text_encoder_2=t5_xxl(layers=1, vocabulary=len(t5_pieces)),
            tokenizer_2=t5_pieces,
            transformer=flux_transformer(),
        )
    return _save(pipeline, folder)


def build_sdxl(folder: Path, device: str) -> Path:
    """Build a diffusers folder of SDXL's sizes, 7 GB in bfloat16; see ``build_flux``."""
    first, second = clip_tokenizer(), clip_tokenizer()
    second.pad_token = "!"
    torch.manual_seed(0)
    with new_weights(device, torch.bfloat16):
        pipeline = StableDiffusionXLPipeline(
            scheduler=EulerDiscreteScheduler(
                beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1
            ),
            vae=sdxl_vae(),
            text_encoder=clip_l(first),
            tokenizer=first,
            text_encoder_2=clip_g(second),
            tokenizer_2=second,
            unet=sdxl_unet(),
            add_watermarker=False,
        )
    return _save(pipeline, folder)


def flux_transformer(double: int = 19, single: int = 38) -> Any:
    """Return FLUX.1-dev's transformer, or one of fewer blocks."""
    return FluxTransformer2DModel(num_layers=double, num_single_layers=single, guidance_embeds=True)


def sdxl_unet(deepest: int = 10) -> Any:
    """Return SDXL's UNet, or one with fewer blocks in its deepest transformers."""
    return UNet2DConditionModel(
        sample_size=128,
        block_out_channels=(320, 640, 1280),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2, deepest),
        attention_head_dim=(5, 10, 20),
        cross_attention_dim=2048,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=2816,
    )


def flux_vae() -> Any:
    """Return FLUX's VAE."""
    return _vae(
        latent_channels=16,
        scaling_factor=0.3611,
        shift_factor=0.1159,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )


def sdxl_vae() -> Any:
    """Return SDXL's VAE."""
    return _vae(latent_channels=4, scaling_factor=0.13025, force_upcast=True)


def clip_l(tokenizer: CLIPTokenizer | None = None) -> CLIPTextModel:
    """Return the CLIP of both families; ``tokenizer`` is another one than the published."""
    return CLIPTextModel(_clip_config(tokenizer, 768, layers=12, heads=12, hidden_act="quick_gelu"))


def clip_g(tokenizer: CLIPTokenizer | None = None) -> CLIPTextModelWithProjection:
    """Return SDXL's second CLIP; see ``clip_l``."""
    config = _clip_config(tokenizer, 1280, layers=32, heads=20, hidden_act="gelu")
    return CLIPTextModelWithProjection(config)


def t5_xxl(layers: int = 24, vocabulary: int = 32128) -> T5EncoderModel:
    """Return FLUX's T5, or one of fewer layers or pieces."""
    return T5EncoderModel(
        T5Config(
            vocab_size=vocabulary,
            d_model=4096,
            d_kv=64,
            d_ff=10240,
            num_heads=64,
            num_layers=layers,
            feed_forward_proj="gated-gelu",
        )
    )


@contextmanager
def new_weights(device: torch.device | str, dtype: torch.dtype) -> Iterator[None]:
    """Make the weights of new models on a device, in a dtype."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            yield
    finally:
        torch.set_default_dtype(before)


def _vae(**values: Any) -> Any:
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(128, 256, 512, 512),
        layers_per_block=2,
        sample_size=1024,
        **values,
    )


def _clip_config(
    tokenizer: CLIPTokenizer | None, width: int, *, layers: int, heads: int, hidden_act: str
) -> CLIPTextConfig:
    words: dict[str, Any] = {"bos_token_id": 49406, "eos_token_id": 49407}
    if tokenizer is not None:
        words = {
            "vocab_size": len(tokenizer),
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        }
    return CLIPTextConfig(
        hidden_size=width,
        intermediate_size=4 * width,
        projection_dim=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        hidden_act=hidden_act,
        **words,
    )


def _save(pipeline: DiffusionPipeline, folder: Path) -> Path:
    for part in pipeline.components.values():
        if isinstance(part, torch.nn.Module):
            for parameter in part.parameters():
                if parameter.ndim > 1:
                    torch.nn.init.normal_(parameter, std=_DEVIATION)
    pipeline.save_pretrained(folder, safe_serialization=True, max_shard_size="5GB")
    write_older_tokenizers(folder)
    return folder
