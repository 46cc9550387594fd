"""What is published of a checkpoint: what our writer makes of a LoRA, or the library's files."""

import shutil
from collections.abc import Mapping
from pathlib import Path

import torch

from tasks.jobs.flux_lora import FluxLoraConfig
from tasks.jobs.pipeline import PipelineConfig
from tasks.jobs.sdxl import SdxlLoraConfig
from worker.trainer.invoke.lora import alpha_of, write_lora_file
from worker.trainer.invoke.run import Run


class Results:
    """Writes them.

    Args:
        config: The job's.
        patches: The patches applied.
    """

    run: Run
    """Of the run, once there is one."""

    def __init__(self, config: PipelineConfig, patches: frozenset[str]) -> None:
        self._config = config
        self._patches = patches

    def write(
        self, folder: Path, name: str, steps: int, weights: Mapping[str, torch.Tensor]
    ) -> list[Path]:
        """See ``worker.trainer.checkpoint.WriteResults``."""
        config, path = self._config, folder / f"{name}.safetensors"
        if isinstance(config, FluxLoraConfig | SdxlLoraConfig) and "lora_file" in self._patches:
            transformer = self.run.models.get("transformer")
            write_lora_file(
                path,
                weights,
                config,
                name=name,
                step=steps,
                guided=transformer is not None and bool(transformer.config["guidance_embeds"]),
                alpha=alpha_of(config, self._patches),
            )
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
    """Weights before configs, those of what is trained before others."""
    is_weights = path.suffix == ".safetensors"
    others = ("text_encoder", "text_encoder_2", "vae")
    return not is_weights, path.parent.name in others, str(path)
