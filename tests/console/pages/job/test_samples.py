"""Samples of a job, thinned to what a page can hold."""

from types import SimpleNamespace
from typing import Any, cast

import pytest

from console.pages.job.samples import samples_of
from console.pages.layout import Frame
from console.views import SampleView

FRAME = cast("Frame", SimpleNamespace(link=lambda path: path))


@pytest.mark.parametrize(("steps", "images"), [(10_000, 1), (500, 256), (3, 5000), (2, 1)])
def test_a_page_has_some_steps_of_many_and_the_newest(steps: int, images: int) -> None:
    samples = [
        SampleView(step=step, name=f"validation-{step}-{number}-1.png", prompt=None, size=1)
        for step in range(1, steps + 1)
        for number in range(1, images + 1)
    ]
    shown: dict[int, Any] = samples_of(FRAME, "a", "a", samples)["steps"]
    assert 2 <= len(shown) <= 200
    assert max(shown) == steps
    assert len(shown) == 2 or sum(len(it["images"]) for it in shown.values()) <= 4000
