from dataclasses import fields, replace
from math import isfinite

import pytest
from hypothesis import given
from hypothesis import strategies as st

from routing.classes import MemoryClass
from routing.estimate import (
    PUBLISHED,
    FluxShape,
    MemoryModel,
    SdxlShape,
    estimate_flux_lora,
    estimate_sdxl,
)
from routing.policy import (
    FLOOR_CLASS,
    RESOURCE_REQUIREMENTS,
    DoesNotFitError,
    TrainingType,
    route,
    system_memory_gb,
    types_on,
)
from routing.queues import stage_queue
from tests.routing.shapes import CONSTANTS, SDXL_SHAPES, SHAPES
from tests.routing.test_estimate import USUAL


@given(SHAPES, CONSTANTS | st.just(PUBLISHED))
def test_flux_goes_to_40_gb_or_more_and_fits_there(
    shape: FluxShape, constants: MemoryModel
) -> None:
    estimate = estimate_flux_lora(shape, constants)
    try:
        found = route(TrainingType.FLUX_LORA, estimate)
    except DoesNotFitError:
        assert estimate.needed_gib > max(MemoryClass).floor_gib
        return
    assert found.memory_class >= MemoryClass.GB40
    assert found.memory_class.floor_gib >= estimate.needed_gib
    for stage in ("cache", "train"):
        assert stage_queue(stage, found.gpu_queue) in ("gpu.40gb", "gpu.80gb")
    for stage in ("prepare", "publish"):
        assert stage_queue(stage, found.gpu_queue) == "cpu"


@given(SHAPES, st.sampled_from(TrainingType))
def test_no_class_is_below_its_types_floor(shape: FluxShape, kind: TrainingType) -> None:
    estimate = estimate_flux_lora(shape)
    if estimate.needed_gib <= max(MemoryClass).floor_gib:
        assert route(kind, estimate).memory_class >= FLOOR_CLASS[kind]


@given(
    SDXL_SHAPES,
    st.sampled_from([t for t in TrainingType if t != TrainingType.FLUX_LORA]),
    CONSTANTS | st.just(PUBLISHED),
)
def test_sdxl_goes_to_the_smallest_class_that_holds_it(
    shape: SdxlShape, kind: TrainingType, constants: MemoryModel
) -> None:
    estimate = estimate_sdxl(shape, constants)
    try:
        found = route(kind, estimate)
    except DoesNotFitError:
        assert estimate.needed_gib > max(MemoryClass).floor_gib
        return
    assert found.memory_class.floor_gib >= estimate.needed_gib
    # The smallest class that holds it, or the floor.
    smaller = [c for c in MemoryClass if FLOOR_CLASS[kind] <= c < found.memory_class]
    assert all(c.floor_gib < estimate.needed_gib for c in smaller)
    assert found.memory_class >= FLOOR_CLASS[kind]


@pytest.mark.parametrize("quantization", ["fp8", "int8", "nf4"])
def test_quantized_flux_goes_to_40_gb_though_it_fits_24(quantization: str) -> None:
    shape = replace(USUAL, quantization=quantization)
    found = route(TrainingType.FLUX_LORA, estimate_flux_lora(shape))
    assert found.estimate.needed_gib < MemoryClass.GB24.floor_gib
    assert found.memory_class == MemoryClass.GB40
    assert "never runs below 40gb" in found.reason


def test_parts_add_up_and_an_option_changes_only_its_own() -> None:
    before = estimate_flux_lora(USUAL)
    assert sum(before.parts().values()) == before.needed_gib
    resident = estimate_flux_lora(replace(USUAL, text_encoders_resident=True))
    changed = {k for k, v in resident.parts().items() if v != before.parts()[k]}
    assert changed == {"text_encoders"}


def test_a_job_too_large_for_every_class_is_refused() -> None:
    shape = replace(USUAL, pixels=2048 * 2048, batch_size=8, checkpointed_blocks=0)
    with pytest.raises(DoesNotFitError, match=r"about \d+\.\d GiB.*80gb"):
        route(TrainingType.FLUX_LORA, estimate_flux_lora(shape))


@given(SHAPES, SDXL_SHAPES, CONSTANTS)
def test_every_calibration_gives_finite_estimates(
    flux: FluxShape, sdxl: SdxlShape, constants: MemoryModel
) -> None:
    for estimate in (estimate_flux_lora(flux, constants), estimate_sdxl(sdxl, constants)):
        assert all(isfinite(gib) and gib >= 0 for gib in estimate.parts().values())


@given(SHAPES, st.sampled_from([field.name for field in fields(MemoryModel)]), st.floats(1, 1e15))
def test_a_larger_constant_lowers_no_estimate(shape: FluxShape, name: str, value: float) -> None:
    larger = replace(PUBLISHED, **{name: getattr(PUBLISHED, name) + value})
    assert estimate_flux_lora(shape, larger).needed_gib >= estimate_flux_lora(shape).needed_gib


def test_requirements_are_as_published() -> None:
    system_memory = {kind: system_memory_gb(kind) for kind in TrainingType}
    assert system_memory == {
        "SDXL_LORA": 16,
        "SDXL_TEXTUAL_INVERSION": 12,
        "SDXL_FINETUNE": 32,
        "FLUX_LORA": 64,
    }
    for kind, requirements in RESOURCE_REQUIREMENTS.items():
        min_gb = int(requirements["gpu_memory"].removesuffix("GB"))
        assert FLOOR_CLASS[TrainingType(kind)] >= min_gb


def test_a_worker_gets_the_types_whose_floor_it_serves() -> None:
    assert TrainingType.FLUX_LORA not in types_on(MemoryClass.GB24)
    assert set(types_on(MemoryClass.GB40)) == set(TrainingType)
