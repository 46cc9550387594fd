"""Fits the constants of the memory estimate to measured peaks, by least squares."""

from collections.abc import Sequence
from dataclasses import fields, replace

import numpy as np

from routing.estimate import PUBLISHED, MemoryModel
from tasks.jobs.pipeline import PipelineConfig

_OVERHEAD = "_overhead_bytes"
# A column of length 1 whose part independent of the others is shorter than this would be fitted to
# noise.
_MIN_INDEPENDENT = 0.01


def fit(configs: Sequence[PipelineConfig], peaks: Sequence[int]) -> dict[str, float]:
    """Fit the constants so that the estimates of runs come closest to their peaks.

    Constants that the runs do not determine, because none depends on them or only together with
    others, and constants that would be negative are left out: they keep their published value.

    Args:
        configs: The configs of the runs.
        peaks: The peak memory of each run, in bytes.
    """
    # An estimate is linear in the constants. A constant's column is what it adds to the estimates
    # at its published value.
    names = sorted((field.name for field in fields(MemoryModel)), key=_is_no_overhead)
    nothing = replace(PUBLISHED, **dict.fromkeys(names, 0.0))
    columns = {
        name: _needed(configs, replace(nothing, **{name: getattr(PUBLISHED, name)}))
        - _needed(configs, nothing)
        for name in names
    }
    fitted = _independent(columns)
    while fitted:
        # Subtract the contribution of the other constants.
        rest = _needed(configs, replace(PUBLISHED, **dict.fromkeys(fitted, 0.0)))  # (runs,)
        matrix = np.column_stack([columns[name] for name in fitted])  # (runs, fitted)
        factors = np.linalg.lstsq(matrix, np.array(peaks) - rest)[0]  # (fitted,)
        if factors.min() >= 0:
            return {
                name: float(factor * getattr(PUBLISHED, name))
                for name, factor in zip(fitted, factors, strict=True)
            }
        del fitted[int(factors.argmin())]
    return {}


def _is_no_overhead(name: str) -> bool:
    """Sorts overheads before the others: every run has one."""
    return not name.endswith(_OVERHEAD)


def _needed(configs: Sequence[PipelineConfig], constants: MemoryModel) -> np.ndarray:
    """Return the estimates in bytes, (runs,)."""
    return np.array([config.estimate(constants).needed_bytes for config in configs], float)


def _independent(columns: dict[str, np.ndarray]) -> list[str]:
    """Return the columns that are linearly independent of earlier ones (Gram-Schmidt)."""
    found: list[str] = []
    kept: list[np.ndarray] = []  # orthonormal
    for name, column in columns.items():
        length = np.linalg.norm(column)
        if length == 0:
            continue
        new = column / length
        for other in kept:
            new = new - (new @ other) * other
        size = np.linalg.norm(new)
        if size > _MIN_INDEPENDENT:
            found.append(name)
            kept.append(new / size)
    return found
