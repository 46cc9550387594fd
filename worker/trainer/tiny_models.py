"""Tiny, valid models for tests: every part real, every size small, made from configs and a seed.

    python -P -m worker.trainer.tiny_models FOLDER [--family sdxl]

Demonstrations without a GPU train them, too. FLUX's default has no single blocks: diffusers splits
the fused ``linear1`` of a kohya file at FLUX's own width of 3072, whatever the model's width, so
that it reads the kohya files of a narrower model only without single blocks.
"""

import argparse
import json
from collections.abc import Sequence
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
from safetensors.torch import load_file
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

from worker.trainer.export.lora_file import clip_path
from worker.trainer.export.safetensors_file import write_safetensors

_TEXT_WIDTH = 32
# Different: diffusers distinguishes SDXL's encoders in a single file by their widths.
_SECOND_WIDTH = 48
_HEAD_WIDTH = 16
_HEADS = 2
# Words of several letters, so that both tokenizers have something to merge.
_WORDS = ("a", "of", "the", "on", "in", "photo", "cat", "dog", "red", "blue", "green", "square")


def build_tiny_flux(
    folder: Path,
    *,
    seed: int = 0,
    double_blocks: int = 2,
    single_blocks: int = 0,
    guidance_embeds: bool = True,
) -> Path:
    """Build a diffusers folder of a tiny FLUX, about 1 MB, the same bytes for the same arguments.

    Returns:
        The folder.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tokenizer, tokenizer_2 = clip_tokenizer(), t5_tokenizer()
        pipeline = FluxPipeline(
            scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
            # FLUX's own values.
            vae=new_vae(
                latent_channels=16,
                scaling_factor=0.3611,
                shift_factor=0.1159,
                use_quant_conv=False,
                use_post_quant_conv=False,
            ),
            text_encoder=CLIPTextModel(clip_config(tokenizer)),
            tokenizer=tokenizer,
            text_encoder_2=new_t5(tokenizer_2),
            tokenizer_2=tokenizer_2,
            transformer=FluxTransformer2DModel(
                in_channels=64,
                num_layers=double_blocks,
                num_single_layers=single_blocks,
                attention_head_dim=_HEAD_WIDTH,
                num_attention_heads=_HEADS,
                joint_attention_dim=_TEXT_WIDTH,
                pooled_projection_dim=_TEXT_WIDTH,
                guidance_embeds=guidance_embeds,
                axes_dims_rope=(4, 6, 6),
            ),
        )
    return save_pipeline(pipeline, folder)


def build_tiny_sdxl(folder: Path, *, seed: int = 0, prediction_type: str = "epsilon") -> Path:
    """Build a diffusers folder of a tiny SDXL, about 4 MB, the same bytes for the same arguments.

    Returns:
        The folder.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tokenizer, tokenizer_2 = clip_tokenizer(), clip_tokenizer()
        # As in SDXL's second tokenizer.
        tokenizer_2.pad_token = "!"
        unet = new_unet(
            8,
            (_TEXT_WIDTH, _SECOND_WIDTH),
            block_out_channels=(16, 32, 32),
            transformer_layers_per_block=(1, 1, 2),
            attention_head_dim=(1, 2, 2),
        )
        pipeline = StableDiffusionXLPipeline(
            scheduler=sdxl_scheduler(prediction_type),
            vae=new_vae(latent_channels=4, scaling_factor=0.13025, force_upcast=True),
            text_encoder=CLIPTextModel(clip_config(tokenizer)),
            tokenizer=tokenizer,
            text_encoder_2=CLIPTextModelWithProjection(
                clip_config(
                    tokenizer_2,
                    hidden_size=_SECOND_WIDTH,
                    projection_dim=_SECOND_WIDTH,
                    # SDXL's second encoder has this wrong end token in its config.
                    eos_token_id=2,
                )
            ),
            tokenizer_2=tokenizer_2,
            unet=unet,
            add_watermarker=False,
        )
    return save_pipeline(pipeline, folder)


def main() -> None:
    """Build a model from the command line."""
    parser = argparse.ArgumentParser(description="Build a tiny model for tests and demonstrations.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--family", choices=("flux", "sdxl"), default="flux")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    build = build_tiny_sdxl if arguments.family == "sdxl" else build_tiny_flux
    build(arguments.folder, seed=arguments.seed)


def save_pipeline(pipeline: DiffusionPipeline, folder: Path) -> Path:
    """Save a pipeline with the same bytes each time, and return its folder."""
    pipeline.save_pretrained(folder, safe_serialization=True)
    for path in sorted(folder.rglob("*.safetensors")):
        # The order of save_pretrained's header changes from run to run, and with it the digests.
        # Published models have CLIP's older names.
        is_clip = isinstance(getattr(pipeline, path.parent.name), CLIPTextModel)
        tensors = {clip_path(k) if is_clip else k: v for k, v in load_file(path).items()}
        write_safetensors(path, tensors, {"format": "pt"})
    write_older_tokenizers(folder)
    return folder


def write_older_tokenizers(folder: Path) -> None:
    """Write names and CLIP files as published models have them and transformers 4 needs them."""
    for path in sorted(folder.glob("tokenizer*/tokenizer.json")):
        config = path.with_name("tokenizer_config.json")
        text = config.read_text("utf-8")
        config.write_text(
            text.replace("extra_special_tokens", "additional_special_tokens"), "utf-8"
        )
        model = json.loads(path.read_text("utf-8"))["model"]
        if model["type"] != "BPE":
            continue
        merges = [" ".join(pair) if isinstance(pair, list) else pair for pair in model["merges"]]
        path.with_name("vocab.json").write_text(json.dumps(model["vocab"]), "utf-8")
        lines = "\n".join(["#version: 0.2", *merges, ""])
        path.with_name("merges.txt").write_text(lines, "utf-8")
    index = folder / "model_index.json"
    index.write_text(index.read_text("utf-8").replace("T5Tokenizer", "T5TokenizerFast"), "utf-8")


def new_vae(**values: Any) -> AutoencoderKL:
    """Make a small VAE that reduces images to an eighth, with random weights.

    Args:
        values: Other values of its config.
    """
    vae: AutoencoderKL = AutoencoderKL(
        **{
            "down_block_types": ("DownEncoderBlock2D",) * 4,
            "up_block_types": ("UpDecoderBlock2D",) * 4,
            "block_out_channels": (8, 8, 8, 8),
            "layers_per_block": 1,
            "norm_num_groups": 4,
            **values,
        }
    )
    return vae


def new_unet(time_width: int, text_widths: tuple[int, int], **values: Any) -> UNet2DConditionModel:
    """Make a small UNet of SDXL's blocks, with random weights.

    Args:
        time_width: Width of the embedding of each number of size and crop.
        text_widths: Widths of both text encoders.
        values: Other values of its config.
    """
    unet: UNet2DConditionModel = UNet2DConditionModel(
        sample_size=16,
        layers_per_block=2,
        norm_num_groups=8,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=time_width,
        # Six numbers of size and crop, and the pooled text.
        projection_class_embeddings_input_dim=6 * time_width + text_widths[1],
        cross_attention_dim=sum(text_widths),
        **values,
    )
    return unet


def sdxl_scheduler(prediction_type: str = "epsilon") -> Any:
    """Make SDXL's own scheduler."""
    return EulerDiscreteScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        timestep_spacing="leading",
        steps_offset=1,
        prediction_type=prediction_type,
    )


def clip_config(tokenizer: CLIPTokenizer, **values: Any) -> CLIPTextConfig:
    """Return the config of a small CLIP text encoder; ``values`` override its own."""
    return CLIPTextConfig(
        **{
            "vocab_size": len(tokenizer),
            "hidden_size": _TEXT_WIDTH,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "max_position_embeddings": 77,
            "projection_dim": _TEXT_WIDTH,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
            **values,
        }
    )


def new_t5(tokenizer: T5Tokenizer, **values: Any) -> T5EncoderModel:
    """Make a small T5 encoder with random weights; ``values`` override those of its config."""
    return T5EncoderModel(
        T5Config(
            **{
                "vocab_size": len(tokenizer),
                "d_model": _TEXT_WIDTH,
                "d_kv": 16,
                "d_ff": 64,
                "num_layers": 2,
                "num_heads": 2,
                "feed_forward_proj": "gated-gelu",
                "pad_token_id": tokenizer.pad_token_id,
                "eos_token_id": tokenizer.eos_token_id,
                **values,
            }
        )
    )


def clip_tokenizer(words: Sequence[str] = _WORDS) -> CLIPTokenizer:
    """Make CLIP's byte-level BPE: all bytes, all bytes that end a word, and merges of words."""
    letters = sorted(ByteLevel.alphabet())
    tokens = letters + [letter + "</w>" for letter in letters]
    merges: list[Any] = []
    for word in words:
        left, rest = word[0], [*word[1:-1], word[-1] + "</w>"]
        for right in rest if len(word) > 1 else ():
            if (left, right) not in merges:
                merges.append((left, right))
                tokens.append(left + right)
            left += right
    tokens = [*dict.fromkeys(tokens), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=77)


def t5_tokenizer(words: Sequence[str] = _WORDS) -> T5Tokenizer:
    """Make T5's unigram pieces: printable ASCII and words."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\N{LOWER ONE EIGHTH BLOCK}", -2.0)]
    pieces += [(chr(code), -6.0) for code in range(33, 127)]
    pieces += [(f"\N{LOWER ONE EIGHTH BLOCK}{word}", -4.0) for word in words]
    return T5Tokenizer(vocab=pieces, extra_ids=4, model_max_length=512)


if __name__ == "__main__":
    main()
