"""FLUX LoRA shapes for property tests."""

from hypothesis import strategies as st

from routing.estimate import FluxShape

SIDES = st.integers(1, 256).map(lambda patches: 16 * patches)
SHAPES = st.builds(
    FluxShape,
    pixels=st.builds(lambda width, height: width * height, SIDES, SIDES),
    batch_size=st.integers(1, 64),
    rank=st.integers(1, 512),
    weight_dtype=st.sampled_from(["float32", "bfloat16", "float16"]),
    attention_only=st.booleans(),
    gradient_checkpointing=st.booleans(),
    text_encoders_resident=st.booleans(),
)
