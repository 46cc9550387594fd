"""How much GPU memory a FLUX LoRA run needs, with its parts.

The model is linear in what a run keeps on the card: frozen weights, resident text encoders, the
trained weights with gradient and optimizer state, activations, and a constant for the CUDA
context and allocator. It lies within 10 % of ten of the eleven published measurements it was
checked against; it is an estimate, not a measurement of the card at hand.
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
_TRAINED_BYTES = 16  # fp32 weight, gradient and AdamW's two moments
_OVERHEAD_BYTES = 1.2e9  # CUDA context, cuBLAS workspaces, allocator slack


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
    """

    pixels: int
    batch_size: int
    rank: int
    weight_dtype: str
    attention_only: bool
    gradient_checkpointing: bool
    text_encoders_resident: bool


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
            "adapters and optimizer": self.adapters_gib,
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
    return Estimate(
        weights_gib=_FLUX_WEIGHT_BYTES[shape.weight_dtype] / GIB,
        text_encoders_gib=encoders / GIB,
        adapters_gib=params_per_rank * shape.rank * _TRAINED_BYTES / GIB,
        activations_gib=live * block / GIB,
        overhead_gib=_OVERHEAD_BYTES / GIB,
    )
