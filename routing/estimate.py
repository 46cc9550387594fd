"""How much GPU memory a run needs, with its parts.

The model is linear in what a run keeps on the card: frozen weights, resident text encoders, the
trained weights with gradient and optimizer state, activations, and a constant for the CUDA
context and allocator. For FLUX it lies within 10 % of ten of the eleven published measurements it
was checked against, for SDXL within the published ranges; it is an estimate, not a measurement of
the card at hand.
"""

from dataclasses import dataclass

from routing.classes import GIB

# FLUX.1: 11.9e9 parameters; the T5-XXL and CLIP-L encoders together 9.9 GB in bf16.
_FLUX_WEIGHT_BYTES = {"float32": 47.6e9, "bfloat16": 23.8e9, "float16": 23.8e9}
_TEXT_ENCODERS_BYTES = {"float32": 19.8e9, "bfloat16": 9.9e9, "float16": 9.9e9}
# Trained parameters for each unit of rank, and the live copies of a (tokens, 3072) activation that
# one of the 57 blocks keeps for its backward pass.
_ALL_LINEARS = (4.086e6, 24)
_ATTENTION_ONLY = (1.634e6, 12)
_BLOCKS = 57
_WIDTH = 3072
# What is left of the bf16 weights: torchao's and bitsandbytes' files of FLUX.
_QUANTIZED_BYTES = {"fp8": 12.2e9, "int8": 12.2e9, "nf4": 6.7e9}
_TRAINED_BYTES = 8  # fp32 weight and gradient, beside what the optimizer keeps
_OVERHEAD_BYTES = 1.2e9  # CUDA context, cuBLAS workspaces, allocator slack

# SDXL: the UNet, both text encoders and the VAE, in parameters.
_UNET = 2.567e9
_SDXL_ENCODERS = 0.818e9
_SDXL_VAE = 0.084e9
# Bytes of activations that the UNet keeps for its backward pass, for each pixel of an image, in a
# half precision; without and with gradient checkpointing.
_UNET_BYTES_PER_PIXEL = 9000
_UNET_CHECKPOINTED_BYTES_PER_PIXEL = 1000
# The VAE's own peak for each pixel of one image, in float32.
_VAE_BYTES_PER_PIXEL = 1600
_DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class FluxShape:
    """What of a FLUX LoRA config decides its memory.

    Attributes:
        pixels: Width times height of the largest training image after bucketing.
        batch_size: Samples of one forward pass.
        rank: LoRA rank.
        weight_dtype: ``float32``, ``bfloat16`` or ``float16``, of the frozen weights.
        attention_only: LoRA on the attention projections only, not on every linear layer.
        gradient_checkpointing: Recompute each block's activations in the backward pass.
        text_encoders_resident: The encoders stay on the GPU (their outputs are not cached).
        optimizer_bytes: Kept by the optimizer for each trained weight; AdamW's 8.
        quantization: ``fp8``, ``int8`` or ``nf4`` of the frozen transformer; None for none.
    """

    pixels: int
    batch_size: int
    rank: int
    weight_dtype: str
    attention_only: bool
    gradient_checkpointing: bool
    text_encoders_resident: bool
    optimizer_bytes: float = 8
    quantization: str | None = None


@dataclass(frozen=True)
class SdxlShape:
    """What of an SDXL config decides its memory.

    Attributes:
        pixels: Width times height of the largest training image after bucketing.
        batch_size: Samples of one forward pass.
        weight_dtype: ``float32``, ``bfloat16`` or ``float16``, of the frozen weights.
        trained_parameters: Trained weights beside the UNet's own.
        trains_unet: The UNet's own weights are trained: they are float32 then.
        optimizer_bytes: Kept by the optimizer for each trained weight.
        weight_copies: Further float32 copies of the trained weights: 1 for a moving average.
        gradient_checkpointing: Recompute each block's activations in the backward pass.
        text_encoders_resident: The encoders stay on the GPU.
        vae_resident: The VAE encodes at each step.
    """

    pixels: int
    batch_size: int
    weight_dtype: str
    trained_parameters: float
    trains_unet: bool
    optimizer_bytes: float
    weight_copies: int
    gradient_checkpointing: bool
    text_encoders_resident: bool
    vae_resident: bool


@dataclass(frozen=True)
class Estimate:
    """GPU memory of a run in GiB, by what takes it."""

    weights_gib: float
    text_encoders_gib: float
    adapters_gib: float
    activations_gib: float
    overhead_gib: float

    @property
    def needed_gib(self) -> float:
        """The sum of the parts."""
        return sum(self.parts().values())

    def parts(self) -> dict[str, float]:
        """Part name to GiB, in the order people read them."""
        return {
            "weights": self.weights_gib,
            "text encoders": self.text_encoders_gib,
            "trained weights and optimizer": self.adapters_gib,
            "activations": self.activations_gib,
            "overhead": self.overhead_gib,
        }


def estimate_flux_lora(shape: FluxShape) -> Estimate:
    """The GPU memory a FLUX LoRA run of this shape needs."""
    params_per_rank, copies = _ATTENTION_ONLY if shape.attention_only else _ALL_LINEARS
    tokens = shape.pixels / 256 + 512  # 2x2 patches of 8x8-pixel latents, plus T5's tokens
    activation_bytes = 4 if shape.weight_dtype == "float32" else 2
    block = shape.batch_size * tokens * _WIDTH * activation_bytes
    live = (_BLOCKS + copies + 12) if shape.gradient_checkpointing else _BLOCKS * copies
    encoders = _TEXT_ENCODERS_BYTES[shape.weight_dtype] if shape.text_encoders_resident else 0
    weights = _FLUX_WEIGHT_BYTES[shape.weight_dtype]
    if shape.quantization is not None:
        weights = _QUANTIZED_BYTES[shape.quantization]
    trained_bytes = _TRAINED_BYTES + shape.optimizer_bytes
    return Estimate(
        weights_gib=weights / GIB,
        text_encoders_gib=encoders / GIB,
        adapters_gib=params_per_rank * shape.rank * trained_bytes / GIB,
        activations_gib=live * block / GIB,
        overhead_gib=_OVERHEAD_BYTES / GIB,
    )


def estimate_sdxl(shape: SdxlShape) -> Estimate:
    """The GPU memory an SDXL run of this shape needs."""
    dtype_bytes = _DTYPE_BYTES[shape.weight_dtype]
    # Trained in float32, the UNet is also there in the precision of the computation, if another.
    unet = _UNET * dtype_bytes
    if shape.trains_unet and shape.weight_dtype == "float32":
        unet = 0.0
    trained = shape.trained_parameters + _UNET * shape.trains_unet
    trained_bytes = _TRAINED_BYTES + shape.optimizer_bytes + 4 * shape.weight_copies
    vae = (_SDXL_VAE * 4 + shape.pixels * _VAE_BYTES_PER_PIXEL) * shape.vae_resident
    per_pixel = (
        _UNET_CHECKPOINTED_BYTES_PER_PIXEL
        if shape.gradient_checkpointing
        else _UNET_BYTES_PER_PIXEL
    )
    return Estimate(
        weights_gib=(unet + vae) / GIB,
        text_encoders_gib=_SDXL_ENCODERS * dtype_bytes * shape.text_encoders_resident / GIB,
        adapters_gib=trained * trained_bytes / GIB,
        activations_gib=shape.batch_size * shape.pixels * per_pixel * dtype_bytes / 2 / GIB,
        overhead_gib=_OVERHEAD_BYTES / GIB,
    )
