from collections.abc import Sequence
from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from routing.estimate import PUBLISHED, MemoryModel
from tasks.calibration import Measurement
from tasks.jobs.calibration_shapes import TYPES, shapes
from tasks.jobs.pipeline import PipelineConfig
from worker.trainer.calibration.calibrate import fitted
from worker.trainer.calibration.fit import fit

CONFIGS = {kind: [config for _, config in shapes(kind, None)] for kind in TYPES}
NAMES = {
    kind: {f.name for f in fields(MemoryModel) if f.name.startswith(kind.partition("_")[0].lower())}
    for kind in TYPES
}


def times(factors: dict[str, float]) -> MemoryModel:
    changes = {name: factor * getattr(PUBLISHED, name) for name, factor in factors.items()}
    return replace(PUBLISHED, **changes)


def peaks_of(configs: Sequence[PipelineConfig], truth: MemoryModel) -> list[int]:
    """What runs would take if the estimate's form were the truth."""
    return [config.estimate(truth).needed_bytes for config in configs]


@pytest.mark.parametrize("kind", TYPES)
@settings(max_examples=25, deadline=None)
@given(st.data())
def test_fit_recovers_the_constants_of_the_peaks(kind: str, data: st.DataObject) -> None:
    factors = {name: data.draw(st.floats(0.1, 5), name) for name in sorted(NAMES[kind])}
    truth = times(factors)
    found = fit(CONFIGS[kind], peaks_of(CONFIGS[kind], truth))
    assert found == pytest.approx({name: getattr(truth, name) for name in factors}, rel=1e-4)


@pytest.mark.parametrize("kind", TYPES)
def test_noise_changes_the_estimates_little(kind: str) -> None:
    configs, random = CONFIGS[kind], np.random.default_rng(3)
    truth = times(dict.fromkeys(NAMES[kind], 1.3))
    peaks = [round(p * random.normal(1, 0.01)) for p in peaks_of(configs, truth)]
    found = replace(PUBLISHED, **fit(configs, peaks))
    for config, peak in zip(configs, peaks, strict=True):
        assert config.estimate(found).needed_bytes == pytest.approx(peak, rel=0.03)


def test_undetermined_constant_keeps_its_published_value() -> None:
    # Without gradient checkpointing, no run fits the GPU.
    ran = [config for config in CONFIGS["SDXL_LORA"] if config.gradient_checkpointing]
    truth = times({"sdxl_overhead_bytes": 2, "sdxl_checkpointed_pixel_bytes": 2})
    found = fit(ran, peaks_of(ran, truth))
    assert "sdxl_pixel_bytes" not in found
    assert found["sdxl_overhead_bytes"] == pytest.approx(1.5e9, rel=1e-4)
    assert not {name for name in found if name.startswith("flux")}


def test_negative_constant_keeps_its_published_value() -> None:
    configs = CONFIGS["SDXL_LORA"]
    truth = replace(PUBLISHED, sdxl_overhead_bytes=-1e9)
    found = fit(configs, peaks_of(configs, truth))
    assert "sdxl_overhead_bytes" not in found
    assert min(found.values()) >= 0


def test_runs_out_of_memory_are_left_out() -> None:
    configs = CONFIGS["FLUX_LORA"]
    truth = times(dict.fromkeys(NAMES["FLUX_LORA"], 1.2))
    measured = [
        Measurement(options={}, measured_bytes=peak if peak < 40e9 else None)
        for peak in peaks_of(configs, truth)
    ]
    assert any(it.measured_bytes is None for it in measured)
    constants = fitted(configs, measured)
    expected = {name: 1.2 * getattr(PUBLISHED, name) for name in NAMES["FLUX_LORA"]}
    assert constants == pytest.approx(expected, rel=1e-3)


def test_no_runs_determine_no_constant() -> None:
    assert fit([], []) == {}


@pytest.mark.parametrize("kind", TYPES)
def test_shapes_determine_every_constant_of_their_family(kind: str) -> None:
    assert set(fit(CONFIGS[kind], peaks_of(CONFIGS[kind], PUBLISHED))) == NAMES[kind]
