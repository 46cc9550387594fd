"""The published files of a checkpoint: LoRAs by our own writers, other results by the library."""

import shutil
from collections.abc import Mapping
from pathlib import Path

import torch

from tasks.jobs.pipeline import PipelineConfig
from worker.trainer.invoke.pipelines import PIPELINES
from worker.trainer.invoke.run import Run


class Results:
    """Writes the published files.

    Args:
        config: The job's config.
        patches: The patches.
    """

    run: Run
    """The run, set once it exists."""

    def __init__(self, config: PipelineConfig, patches: frozenset[str]) -> None:
        self._config = config
        self._patches = patches

    def write(
        self, folder: Path, name: str, steps: int, weights: Mapping[str, torch.Tensor]
    ) -> list[Path]:
        """Write the files; see ``worker.trainer.checkpoint.WriteResults``."""
        path = folder / f"{name}.safetensors"
        lora = PIPELINES[self._config.type].lora
        if lora is not None and "lora_file" in self._patches:
            lora.write(path, weights, self._config, self.run, name=name, step=steps)
            return [path]
        written = self.run.results
        assert written is not None
        if written.is_file():
            written.rename(path)
            return [path]
        shutil.move(written, folder / name)
        files = sorted(it for it in (folder / name).rglob("*") if it.is_file())
        # The trained weights first.
        return sorted(files, key=_rank)


def _rank(path: Path) -> tuple[bool, bool, str]:
    """Sort weights before configs, and trained weights before others."""
    is_weights = path.suffix == ".safetensors"
    others = ("text_encoder", "text_encoder_2", "vae")
    return not is_weights, path.parent.name in others, str(path)
