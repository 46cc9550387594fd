"""SDXL's weights by the original model's names, as a single-file checkpoint holds them."""

from collections.abc import Mapping

import torch

from tasks.base_models.layouts import original_unet
from tasks.base_models.parts import SDXL
from worker.trainer.weights import original_tensors

Tensors = Mapping[str, torch.Tensor]


def single_file_tensors(
    unet: Tensors, text_encoder: Tensors, text_encoder_2: Tensors, vae: Tensors
) -> dict[str, torch.Tensor]:
    """Return the tensors of the whole model by the original model's names.

    Args:
        unet: The UNet's tensors by diffusers' names.
        text_encoder: The first text encoder's by their names in files.
        text_encoder_2: The second's.
        vae: The VAE's by diffusers' names.
    """
    parts = {
        "unet": unet,
        "text_encoder": text_encoder,
        "text_encoder_2": text_encoder_2,
        "vae": vae,
    }
    return {
        name: tensor
        for part, tensors in parts.items()
        for name, tensor in original_tensors(SDXL.parts[part], tensors).items()
    }


def original_layers(unet: torch.nn.Module) -> dict[str, str]:
    """Return the original model's path of each layer of a UNet, which may have LoRA layers."""
    names = [name for name, _ in unet.named_parameters() if ".lora_" not in name]
    sources = original_unet({name.replace(".base_layer.", "."): () for name in names})
    return {
        name.rpartition(".")[0]: source.name.rpartition(".")[0] for name, source in sources.items()
    }
