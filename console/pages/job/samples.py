"""Validation images by step, of one job or of several side by side."""

import re
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

from nicegui.element import Element

from console.pages.formatting import size
from console.pages.job.results import file_link
from console.pages.layout import Frame
from console.security_headers import API
from console.views import FilesView, SampleView

# validation-STEP-PROMPT-NUMBER.png
_PLACE = re.compile(r"validation-\d+-(\d+-\d+)\.png", re.ASCII)
# Steps and images that a page has of a job; of more, every second step is left out.
_MAX_STEPS, _MAX_IMAGES = 200, 4000

Document = dict[str, Any]


class SampleViewer(Element, component="sample_viewer.js"):
    """Samples with a slider over steps; the newest are shown first.

    Args:
        jobs: What ``samples_of`` returns, of each job.
    """

    def __init__(self, jobs: Sequence[Document]) -> None:
        super().__init__()
        self._props["jobs"] = list(jobs)

    def show(self, jobs: Sequence[Document]) -> None:
        """Show other samples."""
        if self._props["jobs"] != list(jobs):
            self._props["jobs"] = list(jobs)


def samples_of(
    frame: Frame,
    job_id: str,
    name: str,
    samples: Sequence[SampleView],
    files: FilesView | None = None,
) -> Document:
    """Return a job's samples for a viewer.

    Args:
        frame: Frame of the page, for links.
        job_id: The job.
        name: What the job is called.
        samples: Its samples.
        files: Its published files; None before it has ended.
    """
    steps: dict[int, Document] = {}
    for sample in samples:
        made = steps.setdefault(sample.step, {"images": {}, "file": None})
        match = _PLACE.fullmatch(sample.name)
        path = f"{API}/jobs/{quote(job_id)}/samples/{quote(sample.name)}"
        made["images"][match[1] if match else sample.name] = {
            "prompt": sample.prompt or "a validation prompt",
            "src": frame.link(path),
        }
    saved = {} if files is None else {it.step: it for it in reversed(files.files) if it.step}
    for step, made in steps.items():
        if step in saved:
            file = saved[step]
            made["file"] = {
                "href": file_link(frame, job_id, file),
                "name": file.name.rpartition("/")[2],
                "size": size(file.size),
            }
    most = max((len(made["images"]) for made in steps.values()), default=1)
    while len(steps) > max(min(_MAX_STEPS, _MAX_IMAGES // most), 2):
        newest = max(steps)
        steps = {step: steps[step] for step in [*sorted(steps)[:-1][::2], newest]}
    return {"name": name, "note": _note(files, sorted(saved)), "steps": steps}


def _note(files: FilesView | None, saved: Sequence[int]) -> str:
    """Return why a step has no file."""
    if files is None:
        return "Each saved step's file can be downloaded after the job's end."
    if not saved:
        return "No file was published."
    steps = ", ".join(f"{step:,}" for step in saved[-10:])
    return f"No file was published for this step. Steps with a file: {steps}."
