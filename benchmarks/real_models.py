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

# As the published configs have them.
_CLIP_L: dict[str, Any] = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "projection_dim": 768,
}
_CLIP_G: dict[str, Any] = {
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
    "projection_dim": 1280,
    "hidden_act": "gelu",
}
_T5_XXL: dict[str, Any] = {
    "d_model": 4096,
    "d_kv": 64,
    "d_ff": 10240,
    "num_heads": 64,
    "num_layers": 1,
    "feed_forward_proj": "gated-gelu",
}
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
    clip, t5 = clip_tokenizer(), t5_tokenizer()
    with _drawn_on(device):
        pipeline = FluxPipeline(
            scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
            vae=_vae(
                latent_channels=16,
                scaling_factor=0.3611,
                shift_factor=0.1159,
                use_quant_conv=False,
                use_post_quant_conv=False,
            ),
            text_encoder=CLIPTextModel(_clip_config(clip, _CLIP_L)),
            tokenizer=clip,
            text_encoder_2=T5EncoderModel(T5Config(vocab_size=len(t5), **_T5_XXL)),
            tokenizer_2=t5,
            transformer=FluxTransformer2DModel(guidance_embeds=True),
        )
    return _save(pipeline, folder)


def build_sdxl(folder: Path, device: str) -> Path:
    """Build a diffusers folder of SDXL's sizes, 7 GB in bfloat16; see ``build_flux``."""
    first, second = clip_tokenizer(), clip_tokenizer()
    second.pad_token = "!"
    with _drawn_on(device):
        pipeline = StableDiffusionXLPipeline(
            scheduler=EulerDiscreteScheduler(
                beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1
            ),
            vae=_vae(latent_channels=4, scaling_factor=0.13025, force_upcast=True),
            text_encoder=CLIPTextModel(_clip_config(first, _CLIP_L)),
            tokenizer=first,
            text_encoder_2=CLIPTextModelWithProjection(_clip_config(second, _CLIP_G)),
            tokenizer_2=second,
            unet=sdxl_unet(),
            add_watermarker=False,
        )
    return _save(pipeline, folder)


def sdxl_unet() -> Any:
    """Return a UNet of SDXL's sizes."""
    return UNet2DConditionModel(
        sample_size=128,
        block_out_channels=(320, 640, 1280),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2, 10),
        attention_head_dim=(5, 10, 20),
        cross_attention_dim=2048,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=2816,
    )


@contextmanager
def _drawn_on(device: str) -> Iterator[None]:
    """Make new weights on a device, in bfloat16."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    torch.manual_seed(0)
    try:
        with torch.device(device):
            yield
    finally:
        torch.set_default_dtype(before)


def _vae(**values: Any) -> AutoencoderKL:
    vae: AutoencoderKL = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(128, 256, 512, 512),
        layers_per_block=2,
        sample_size=1024,
        **values,
    )
    return vae


def _clip_config(tokenizer: CLIPTokenizer, sizes: dict[str, Any]) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        max_position_embeddings=77,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **sizes,
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
