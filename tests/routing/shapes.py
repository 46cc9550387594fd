"""FLUX LoRA and SDXL shapes, and calibrations, for property tests."""

from dataclasses import fields

from hypothesis import strategies as st

from routing.estimate import (
    CLIP_LAYERS,
    FLUX_BLOCKS,
    FLUX_DOUBLE_LAYERS,
    FLUX_SINGLE_LAYERS,
    UNET_BLOCKS,
    UNET_LAYERS,
    FluxShape,
    MemoryModel,
    SdxlShape,
)

SIDES = st.integers(1, 256).map(lambda patches: 16 * patches)
DTYPES = st.sampled_from(["float32", "bfloat16", "float16"])
RUNS = {
    "pixels": st.builds(lambda width, height: width * height, SIDES, SIDES),
    "batch_size": st.integers(1, 64),
    "weight_dtype": DTYPES,
    "compute_dtype": DTYPES,
    "rank": st.integers(1, 512),
    "clip_layers": st.frozensets(st.sampled_from([*CLIP_LAYERS])),
    "text_encoders_resident": st.booleans(),
    "vae_resident": st.booleans(),
    "accumulates": st.booleans(),
    # AdamW's 8 bytes, its 8-bit form's 2, Prodigy's 16, Adafactor's next to none.
    "optimizer_bytes": st.sampled_from([0, 2, 8, 16]),
    "validation_pixels": st.sampled_from([0, 512 * 512, 2048 * 2048]),
}
SHAPES = st.builds(
    FluxShape,
    **RUNS,
    layers=st.frozensets(st.sampled_from([*FLUX_DOUBLE_LAYERS, *FLUX_SINGLE_LAYERS]), min_size=1),
    checkpointed_blocks=st.integers(0, FLUX_BLOCKS),
    quantization=st.sampled_from([None, "fp8", "int8", "nf4"]),
    text_tokens=st.integers(1, 512),
)
SDXL_SHAPES = st.builds(
    SdxlShape,
    **RUNS,
    layers=st.frozensets(st.sampled_from([*UNET_LAYERS])),
    checkpointed_blocks=st.integers(0, UNET_BLOCKS),
    trains_unet=st.booleans(),
    trains_embeddings=st.booleans(),
    weight_copies=st.integers(0, 2),
)
# From nothing to what no card will ever have: the most that a calibration's file may say.
CONSTANTS = st.builds(
    MemoryModel,
    **{field.name: st.floats(0, 1e15) | st.floats(0, 1e4) for field in fields(MemoryModel)},
)
