from dataclasses import replace

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from routing.classes import GIB
from routing.estimate import (
    FLUX_BLOCKS,
    FLUX_DOUBLE_LAYERS,
    FLUX_SINGLE_LAYERS,
    PUBLISHED,
    FluxShape,
    MemoryModel,
    estimate_flux_lora,
    flux_lora_parameters,
)
from tests.routing.shapes import CONSTANTS, SHAPES

USUAL = FluxShape(
    pixels=1024 * 1024,
    batch_size=1,
    rank=16,
    layers=frozenset(FLUX_DOUBLE_LAYERS | FLUX_SINGLE_LAYERS),
    weight_dtype="bfloat16",
    compute_dtype="bfloat16",
    checkpointed_blocks=FLUX_BLOCKS,
)


def needed_gb(shape: FluxShape) -> float:
    """Decimal gigabytes, as measurements are published."""
    return estimate_flux_lora(shape).needed_gib * GIB / 1e9


def test_frozen_weights_have_the_size_of_published_files() -> None:
    assert estimate_flux_lora(USUAL).weights_gib * GIB == pytest.approx(23.8e9, rel=1e-3)
    full = replace(USUAL, weight_dtype="float32", compute_dtype="float32")
    assert estimate_flux_lora(full).weights_gib * GIB == pytest.approx(47.6e9, rel=1e-3)


def test_trained_weights_are_those_of_a_published_lora() -> None:
    # A rank-16 LoRA on all linear layers of the blocks, in 16 bits: a file of 130 MB.
    assert flux_lora_parameters(USUAL) * 2 == pytest.approx(130.7e6, rel=1e-3)


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
    assert needed_gb(replace(USUAL, pixels=16 * 16, rank=1)) > 24


@pytest.mark.parametrize(("quantization", "weights_gb"), [("fp8", 12), ("int8", 12), ("nf4", 6.3)])
def test_quantized_flux_has_the_size_of_its_weights_and_fits_24_gb(
    quantization: str, weights_gb: float
) -> None:
    shape = replace(USUAL, quantization=quantization)
    assert estimate_flux_lora(shape).weights_gib * GIB == pytest.approx(weights_gb * 1e9, rel=0.01)
    assert needed_gb(shape) < 22


@given(SHAPES)
def test_fewer_bits_need_less_weight(shape: FluxShape) -> None:
    weights = [
        estimate_flux_lora(replace(shape, quantization=kind)).weights_gib
        for kind in ("nf4", "int8", "fp8", None)
    ]
    assert weights[0] < weights[1] == weights[2] < weights[3]


def test_resident_text_encoders_take_their_weights() -> None:
    resident = replace(USUAL, text_encoders_resident=True)
    assert estimate_flux_lora(resident).text_encoders_gib * GIB == pytest.approx(9.77e9, rel=1e-3)
    assert estimate_flux_lora(USUAL).text_encoders_gib == 0


@given(SHAPES, CONSTANTS)
def test_parts_are_not_negative_and_add_up(shape: FluxShape, constants: MemoryModel) -> None:
    estimate = estimate_flux_lora(shape, constants)
    parts = estimate.parts()
    assert estimate.needed_gib == pytest.approx(sum(parts.values()))
    assert all(gib >= 0 for gib in parts.values())
    assert parts["weights"] > 0
    assert parts["adapters"] > 0


@given(SHAPES)
def test_checkpointing_more_blocks_keeps_fewer_activations(shape: FluxShape) -> None:
    needed = [
        estimate_flux_lora(replace(shape, checkpointed_blocks=blocks)).needed_gib
        for blocks in (0, 20, 40, 57)
    ]
    assert needed == sorted(needed, reverse=True)


@given(SHAPES, st.sampled_from(["batch_size", "pixels", "rank"]), st.integers(1, 100))
def test_a_larger_shape_needs_no_less_memory(shape: FluxShape, name: str, more: int) -> None:
    larger = replace(shape, **{name: getattr(shape, name) + more})
    # The cache stage encodes fewer images at once the larger they are.
    assume(shape.vae_resident or name != "pixels")
    assert estimate_flux_lora(larger).needed_gib >= estimate_flux_lora(shape).needed_gib


def test_the_cache_stage_counts_where_it_needs_more_than_training() -> None:
    shape = replace(USUAL, pixels=512 * 512, quantization="nf4", text_encoders_resident=True)
    live, cached = (
        estimate_flux_lora(replace(shape, text_encoders_resident=resident))
        for resident in (True, False)
    )
    encoders = live.text_encoders_gib + cached.overhead_gib
    assert cached.needed_gib > encoders > cached.weights_gib + cached.overhead_gib


@given(SHAPES, CONSTANTS, st.floats(0, 1))
def test_estimates_are_linear_in_the_constants(
    shape: FluxShape, constants: MemoryModel, share: float
) -> None:
    between = MemoryModel(
        **{
            name: share * value + (1 - share) * getattr(PUBLISHED, name)
            for name, value in vars(constants).items()
        }
    )
    ends = (estimate_flux_lora(shape, each).needed_gib for each in (constants, PUBLISHED))
    expected = sum(part * end for part, end in zip((share, 1 - share), ends, strict=True))
    assert estimate_flux_lora(shape, between).needed_gib == pytest.approx(expected, rel=1e-6)
