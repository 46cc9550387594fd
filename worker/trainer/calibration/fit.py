"""Fits the constants of the memory estimate to measured peaks.

Knows estimates and least squares; must not know how peaks are measured.
"""

from collections.abc import Sequence
from dataclasses import fields, replace

import numpy as np

from routing.estimate import PUBLISHED, MemoryModel
from tasks.jobs.pipeline import PipelineConfig

_OVERHEAD = "_overhead_bytes"
# A column of length 1 of which the others leave less than this would be fitted to noise.
_LEAST_NEW = 0.01


def fit(configs: Sequence[PipelineConfig], peaks: Sequence[int]) -> dict[str, float]:
    """The constants with which the estimates of these runs come closest to their peaks.

    Those that the runs do not tell, because none depends on them or only together with others, and
    those that would come out below 0, are left out: they keep their published value.

    Args:
        configs: The runs'.
        peaks: The memory each took, in bytes.
    """
    # In constants, an estimate is linear: one's column is what it adds at its published value.
    names = sorted((field.name for field in fields(MemoryModel)), key=_told_first)
    nothing = replace(PUBLISHED, **dict.fromkeys(names, 0.0))
    columns = {
        name: _needed(configs, replace(nothing, **{name: getattr(PUBLISHED, name)}))
        - _needed(configs, nothing)
        for name in names
    }
    told = _independent(columns)
    while told:
        # What keeps its published value is no part of what is to be explained.
        rest = _needed(configs, replace(PUBLISHED, **dict.fromkeys(told, 0.0)))
        matrix = np.column_stack([columns[name] for name in told])  # (runs, told)
        factors = np.linalg.lstsq(matrix, np.array(peaks) - rest)[0]  # (told,)
        if factors.min() >= 0:
            return {
                name: float(factor * getattr(PUBLISHED, name))
                for name, factor in zip(told, factors, strict=True)
            }
        del told[int(factors.argmin())]
    return {}


def _told_first(name: str) -> bool:
    """Overheads sort before the others: every run has one."""
    return not name.endswith(_OVERHEAD)


def _needed(configs: Sequence[PipelineConfig], constants: MemoryModel) -> np.ndarray:
    """The estimates in bytes, (runs,)."""
    return np.array([config.estimate(constants).needed_bytes for config in configs], float)


def _independent(columns: dict[str, np.ndarray]) -> list[str]:
    """Those of the columns that those before them do not make up."""
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
        if size > _LEAST_NEW:
            found.append(name)
            kept.append(new / size)
    return found
