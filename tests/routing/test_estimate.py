from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from routing.classes import GIB
from routing.estimate import FLUX_BLOCKS, FluxShape, estimate_flux_lora
from tests.routing.shapes import SHAPES

USUAL = FluxShape(
    pixels=1024 * 1024,
    batch_size=1,
    rank=16,
    weight_dtype="bfloat16",
    attention_only=False,
    checkpointed_blocks=FLUX_BLOCKS,
    text_encoders_resident=False,
)


def needed_gb(shape: FluxShape) -> float:
    """Decimal gigabytes, as measurements are published."""
    return estimate_flux_lora(shape).needed_gib * GIB / 1e9


def test_frozen_weights_have_the_size_of_published_files() -> None:
    assert estimate_flux_lora(USUAL).weights_gib * GIB == pytest.approx(23.8e9)
    full = replace(USUAL, weight_dtype="float32")
    assert estimate_flux_lora(full).weights_gib * GIB == pytest.approx(47.6e9)


@pytest.mark.parametrize(
    ("shape", "published_gb"),
    [
        (replace(USUAL, batch_size=2), 31),
        (replace(USUAL, checkpointed_blocks=0), 64),
    ],
)
def test_estimates_are_within_a_tenth_of_published_figures(
    shape: FluxShape, published_gb: float
) -> None:
    assert needed_gb(shape) == pytest.approx(published_gb, rel=0.1)


def test_flux_in_bfloat16_never_fits_24_gb() -> None:
    least = replace(USUAL, pixels=16 * 16, rank=1, attention_only=True)
    assert needed_gb(least) > 24


@pytest.mark.parametrize(
    ("quantization", "weights_gb"), [("fp8", 12.2), ("int8", 12.2), ("nf4", 6.7)]
)
@pytest.mark.parametrize("weight_dtype", ["float32", "bfloat16", "float16"])
def test_quantized_weights_have_the_size_of_their_files(
    quantization: str, weights_gb: float, weight_dtype: str
) -> None:
    shape = replace(USUAL, quantization=quantization, weight_dtype=weight_dtype)
    assert estimate_flux_lora(shape).weights_gib * GIB == pytest.approx(weights_gb * 1e9)


@pytest.mark.parametrize("quantization", ["fp8", "int8", "nf4"])
def test_quantized_flux_fits_24_gb(quantization: str) -> None:
    assert needed_gb(replace(USUAL, quantization=quantization)) < 22


@given(SHAPES)
def test_fewer_bits_need_less(shape: FluxShape) -> None:
    needed = [needed_gb(replace(shape, quantization=kind)) for kind in ("nf4", "int8", "fp8", None)]
    assert needed[0] < needed[1] == needed[2] < needed[3]


@given(SHAPES)
def test_larger_optimizer_state_needs_more(shape: FluxShape) -> None:
    needed = [needed_gb(replace(shape, optimizer_bytes=kept)) for kept in (0, 2, 8, 16)]
    assert needed == sorted(set(needed))


def test_resident_text_encoders_take_their_weights() -> None:
    resident = estimate_flux_lora(replace(USUAL, text_encoders_resident=True))
    assert resident.text_encoders_gib * GIB == pytest.approx(9.9e9)
    assert estimate_flux_lora(USUAL).text_encoders_gib == 0


@given(SHAPES)
def test_parts_are_positive_and_add_up(shape: FluxShape) -> None:
    estimate = estimate_flux_lora(shape)
    parts = estimate.parts()
    assert estimate.needed_gib == pytest.approx(sum(parts.values()))
    assert len(parts) == 6
    optional = set() if shape.text_encoders_resident else {"text_encoders"}
    optional |= set() if shape.optimizer_bytes else {"optimizer"}
    assert all(gib > 0 for name, gib in parts.items() if name not in optional)


@given(SHAPES)
def test_checkpointing_lowers_the_estimate(shape: FluxShape) -> None:
    kept = estimate_flux_lora(replace(shape, checkpointed_blocks=0))
    recomputed = estimate_flux_lora(replace(shape, checkpointed_blocks=FLUX_BLOCKS))
    assert recomputed.needed_gib < kept.needed_gib


@given(SHAPES, st.sampled_from(["batch_size", "pixels", "rank"]), st.integers(1, 100))
def test_a_larger_shape_needs_more_memory(shape: FluxShape, name: str, more: int) -> None:
    larger = replace(shape, **{name: getattr(shape, name) + more})
    assert estimate_flux_lora(larger).needed_gib > estimate_flux_lora(shape).needed_gib


@given(SHAPES)
def test_smaller_loras_and_weights_need_no_more(shape: FluxShape) -> None:
    wide = replace(shape, attention_only=False, weight_dtype="float32")
    narrow = replace(shape, attention_only=True, weight_dtype="bfloat16")
    assert estimate_flux_lora(narrow).needed_gib < estimate_flux_lora(wide).needed_gib
