"""Estimates of the GPU memory that a run needs, by part.

The model is linear in what a run keeps on the card: frozen weights, resident text encoders, the
trained weights with gradient and optimizer state, activations, and a constant for the CUDA context
and the allocator. With the published constants it is within 10 % of ten of the eleven published
measurements of FLUX that it was checked against, and within the published ranges for SDXL. It does
not measure the card at hand; ``training-worker calibrate`` does.
"""

from dataclasses import asdict, dataclass

from routing.classes import GIB

FLUX_BLOCKS = 57
"""Blocks of FLUX's transformer that gradient checkpointing can recompute: 19 double, 38 single."""

UNET_BLOCKS = 7
"""Blocks of SDXL's UNet that it can recompute: 3 down, the middle, 3 up."""

# Counted in the published files: parameters, trained parameters per unit of rank, and the width of
# FLUX's blocks.
_FLUX = 11.9e9
_ALL_LINEARS = 4.086e6
_ATTENTION_ONLY = 1.634e6
_WIDTH = 3072
_UNET = 2.567e9
_SDXL_VAE = 0.084e9
_DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class MemoryModel:
    """The constants of the model that are measured, not counted.

    A calibration replaces some of them. Every estimate is linear in them, so that least squares fit
    them to measurements.
    """

    flux_text_encoder_bytes: float = 9.9e9
    """T5-XXL and CLIP-L in half precision, with their activations."""

    flux_8bit_bytes: float = 12.2e9
    """The transformer quantized to 8 bits: torchao's files."""

    flux_4bit_bytes: float = 6.7e9
    """The transformer quantized to 4 bits: bitsandbytes' files."""

    flux_trained_bytes: float = 8
    """Per trained weight, without optimizer state: the weight and its gradient in float32."""

    flux_kept_copies: float = 24
    """Activations of shape (tokens, 3072) that a block keeps with a LoRA on every linear layer."""

    flux_attention_kept_copies: float = 12
    """The same with a LoRA on the attention only."""

    flux_checkpointed_copies: float = 12
    """Such activations with gradient checkpointing, besides one per block and those of the block
    that is recomputed."""

    flux_overhead_bytes: float = 1.2e9
    """CUDA's context, cuBLAS's workspaces and the allocator's slack."""

    sdxl_text_encoder_bytes: float = 1.636e9
    """Both CLIPs in half precision, with their activations."""

    sdxl_trained_bytes: float = 8
    """Per trained weight, without optimizer state: the weight and its gradient in float32."""

    sdxl_pixel_bytes: float = 9000
    """Activations that the UNet keeps in half precision, per pixel of an image."""

    sdxl_checkpointed_pixel_bytes: float = 1000
    """The same with gradient checkpointing."""

    sdxl_vae_pixel_bytes: float = 1600
    """The VAE's peak in float32, per pixel of one image."""

    sdxl_overhead_bytes: float = 1.2e9
    """CUDA's context, cuBLAS's workspaces and the allocator's slack."""


PUBLISHED = MemoryModel()
"""The constants from published measurements, used without a calibration."""


@dataclass(frozen=True)
class FluxShape:
    """The options of a FLUX LoRA job that decide its memory.

    Attributes:
        pixels: Width times height of the largest training image, after bucketing.
        batch_size: Samples of one forward pass.
        rank: The rank of the LoRA.
        weight_dtype: ``float32``, ``bfloat16`` or ``float16``, for the frozen weights.
        attention_only: LoRA on the attention projections only, not on every linear layer.
        checkpointed_blocks: The blocks, of ``FLUX_BLOCKS``, whose activations are recomputed in the
            backward pass.
        text_encoders_resident: The encoders stay on the GPU: their outputs are not cached.
        optimizer_bytes: The optimizer's state per trained weight; 8 for AdamW.
        quantization: ``fp8``, ``int8`` or ``nf4`` of the frozen transformer; None for none.
    """

    pixels: int
    batch_size: int
    rank: int
    weight_dtype: str
    attention_only: bool
    checkpointed_blocks: int
    text_encoders_resident: bool
    optimizer_bytes: float = 8
    quantization: str | None = None


@dataclass(frozen=True)
class SdxlShape:
    """The options of an SDXL job that decide its memory.

    Attributes:
        pixels: Width times height of the largest training image, after bucketing.
        batch_size: Samples of one forward pass.
        weight_dtype: ``float32``, ``bfloat16`` or ``float16``, for the frozen weights.
        trained_parameters: Trained weights besides the UNet's own.
        trains_unet: The UNet's own weights are trained, in float32.
        optimizer_bytes: The optimizer's state per trained weight.
        weight_copies: Further float32 copies of the trained weights: 1 for a moving average.
        checkpointed_blocks: The blocks, of ``UNET_BLOCKS``, whose activations are recomputed in the
            backward pass.
        text_encoders_resident: The encoders stay on the GPU.
        vae_resident: The VAE stays on the GPU and encodes at each step.
    """

    pixels: int
    batch_size: int
    weight_dtype: str
    trained_parameters: float
    trains_unet: bool
    optimizer_bytes: float
    weight_copies: int
    checkpointed_blocks: int
    text_encoders_resident: bool
    vae_resident: bool


@dataclass(frozen=True)
class Estimate:
    """The GPU memory of a run in GiB, by part.

    Attributes:
        weights_gib: The frozen base model.
        text_encoders_gib: The text encoders, if their outputs are not cached.
        adapters_gib: Trained weights (an adapter's, or the model's own) and their gradients, and
            a moving average of them.
        optimizer_gib: The optimizer's state.
        activations_gib: Kept for the backward pass.
        overhead_gib: CUDA's context and the allocator's slack.
    """

    weights_gib: float
    text_encoders_gib: float
    adapters_gib: float
    optimizer_gib: float
    activations_gib: float
    overhead_gib: float

    @property
    def needed_gib(self) -> float:
        """The sum of the parts."""
        return sum(self.parts().values())

    @property
    def needed_bytes(self) -> int:
        """The sum of the parts, in bytes."""
        return round(self.needed_gib * GIB)

    def parts(self) -> dict[str, float]:
        """Return the GiB of each part by name, in the order of display."""
        return {name.removesuffix("_gib"): gib for name, gib in asdict(self).items()}


def estimate_flux_lora(shape: FluxShape, constants: MemoryModel = PUBLISHED) -> Estimate:
    """Estimate the GPU memory of a FLUX LoRA run."""
    dtype_bytes = _DTYPE_BYTES[shape.weight_dtype]
    weights = _FLUX * dtype_bytes
    if shape.quantization is not None:
        is_8bit = shape.quantization in ("fp8", "int8")
        weights = constants.flux_8bit_bytes if is_8bit else constants.flux_4bit_bytes
    trained, copies = _ALL_LINEARS * shape.rank, constants.flux_kept_copies
    if shape.attention_only:
        trained, copies = _ATTENTION_ONLY * shape.rank, constants.flux_attention_kept_copies
    # A checkpointed block keeps its input. The first blocks are checkpointed, and recomputed one at
    # a time after the backward pass of the others.
    kept = (FLUX_BLOCKS - shape.checkpointed_blocks) * copies
    if shape.checkpointed_blocks:
        kept = max(kept, copies + constants.flux_checkpointed_copies)
    live = shape.checkpointed_blocks + kept
    tokens = shape.pixels / 256 + 512  # 2x2 patches of 8x8-pixel latents, plus T5's tokens
    block = shape.batch_size * tokens * _WIDTH * dtype_bytes
    encoders = constants.flux_text_encoder_bytes * dtype_bytes / 2
    return Estimate(
        weights_gib=weights / GIB,
        text_encoders_gib=encoders * shape.text_encoders_resident / GIB,
        adapters_gib=trained * constants.flux_trained_bytes / GIB,
        optimizer_gib=trained * shape.optimizer_bytes / GIB,
        activations_gib=live * block / GIB,
        overhead_gib=constants.flux_overhead_bytes / GIB,
    )


def estimate_sdxl(shape: SdxlShape, constants: MemoryModel = PUBLISHED) -> Estimate:
    """Estimate the GPU memory of an SDXL run."""
    dtype_bytes = _DTYPE_BYTES[shape.weight_dtype]
    # A trained UNet is in float32, with a copy in the precision of the computation if that differs.
    unet = _UNET * dtype_bytes
    if shape.trains_unet and shape.weight_dtype == "float32":
        unet = 0.0
    trained = shape.trained_parameters + _UNET * shape.trains_unet
    recomputed = shape.checkpointed_blocks / UNET_BLOCKS
    per_pixel = constants.sdxl_pixel_bytes * (1 - recomputed)
    per_pixel += constants.sdxl_checkpointed_pixel_bytes * recomputed
    kept = shape.batch_size * shape.pixels * per_pixel * dtype_bytes / 2
    encodes = shape.pixels * constants.sdxl_vae_pixel_bytes * shape.vae_resident
    encoders = constants.sdxl_text_encoder_bytes * dtype_bytes / 2
    return Estimate(
        weights_gib=(unet + _SDXL_VAE * 4 * shape.vae_resident) / GIB,
        text_encoders_gib=encoders * shape.text_encoders_resident / GIB,
        adapters_gib=trained * (constants.sdxl_trained_bytes + 4 * shape.weight_copies) / GIB,
        optimizer_gib=trained * shape.optimizer_bytes / GIB,
        activations_gib=(kept + encodes) / GIB,
        overhead_gib=constants.sdxl_overhead_bytes / GIB,
    )
