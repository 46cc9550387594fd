"""FLUX LoRA and SDXL shapes, and calibrations, for property tests."""

from dataclasses import fields

from hypothesis import strategies as st

from routing.estimate import FLUX_BLOCKS, UNET_BLOCKS, FluxShape, MemoryModel, SdxlShape

SIDES = st.integers(1, 256).map(lambda patches: 16 * patches)
SHAPES = st.builds(
    FluxShape,
    pixels=st.builds(lambda width, height: width * height, SIDES, SIDES),
    batch_size=st.integers(1, 64),
    rank=st.integers(1, 512),
    weight_dtype=st.sampled_from(["float32", "bfloat16", "float16"]),
    attention_only=st.booleans(),
    checkpointed_blocks=st.integers(0, FLUX_BLOCKS),
    text_encoders_resident=st.booleans(),
    # AdamW's 8 bytes, its 8-bit form's 2, Prodigy's 16, Adafactor's next to none.
    optimizer_bytes=st.sampled_from([0, 2, 8, 16]),
    quantization=st.sampled_from([None, "fp8", "int8", "nf4"]),
)
SDXL_SHAPES = st.builds(
    SdxlShape,
    pixels=st.builds(lambda width, height: width * height, SIDES, SIDES),
    batch_size=st.integers(1, 64),
    weight_dtype=st.sampled_from(["float32", "bfloat16", "float16"]),
    trained_parameters=st.floats(1, 1e9),
    trains_unet=st.booleans(),
    optimizer_bytes=st.sampled_from([0, 2, 8, 16]),
    weight_copies=st.integers(0, 2),
    checkpointed_blocks=st.integers(0, UNET_BLOCKS),
    text_encoders_resident=st.booleans(),
    vae_resident=st.booleans(),
)
# From nothing to what no card will ever have: the most that a calibration's file may say.
CONSTANTS = st.builds(
    MemoryModel,
    **{field.name: st.floats(0, 1e15) | st.floats(0, 1e4) for field in fields(MemoryModel)},
)
