"""The published results that are copied, and the errors of copying them."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tasks.events import Artifact
from tasks.jobs.job import TrainingJob
from tasks.store import Store

CheckStop = Callable[[], object]
"""Raises an error if the work is to stop; called several times a second."""
# validation-STEP-PROMPT-NUMBER.png; prompts and numbers count from 1.
_SAMPLE = re.compile(r"validation/validation-(\d+)-(\d+)-(\d+)\.png", re.ASCII)
# A page with more is slow; one image of each prompt says what was trained.
_MAX_SAMPLES = 12


class CopyError(ValueError):
    """Results cannot be copied to a destination.

    Attributes:
        retryable: The same copy may succeed later.
        option: The option of the destination that causes it; empty for none.
    """

    def __init__(self, message: str, option: str = "", *, retryable: bool = False) -> None:
        super().__init__(message)
        self.option, self.retryable = option, retryable


@dataclass(frozen=True)
class Sample:
    """A validation image of the last step that has any, with its prompt."""

    file: Artifact
    prompt: str


@dataclass(frozen=True)
class Results:
    """The published results of a job.

    Attributes:
        files: The published files, the trained weights first.
        manifest_key: The store key of the manifest.
        scratch_dir: A folder for files on their way.
    """

    job_id: str
    job: TrainingJob
    files: tuple[Artifact, ...]
    manifest_key: str
    store: Store
    scratch_dir: Path

    def local(self, file: Artifact) -> Path:
        """Return a published file on this machine; it is downloaded unless the store is a folder.

        Raises:
            StoreError: It cannot be read.
        """
        path = self.store.local_path(file.key)
        if path is None:
            self.scratch_dir.mkdir(parents=True, exist_ok=True)
            path = self.scratch_dir / f"copied-{file.sha256}"
            if not path.exists():
                partial = path.with_suffix(".part")
                self.store.download(file.key, partial)
                partial.rename(path)
        return path

    def final_files(self) -> tuple[Artifact, ...]:
        """Return the files of the last checkpoint, without earlier ones and samples."""
        begins = (f"{self.job.name}.", f"{self.job.name}/")
        return tuple(file for file in self.files if file.name.startswith(begins))

    def samples(self) -> tuple[Sample, ...]:
        """Return the first image of each prompt at the last step that has images."""
        prompts = self.job.training.sample_prompts
        found: dict[int, list[Sample]] = {}
        for file in self.files:
            match = _SAMPLE.fullmatch(file.name)
            if match and match[3] == "1" and 1 <= int(match[2]) <= len(prompts):
                sample = Sample(file, prompts[int(match[2]) - 1])
                found.setdefault(int(match[1]), []).append(sample)
        return tuple(found[max(found)][:_MAX_SAMPLES]) if found else ()
