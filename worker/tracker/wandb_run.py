"""Runs of Weights & Biases."""

import os
from pathlib import Path

from tasks.tracking import TrackerRequest, WandbSecret
from worker.tracker.run import RunEnd

_INIT_TIMEOUT_S = 30.0


class WandbRun:
    """A run whose id is the job's; W&B ignores a step that the run has.

    Args:
        request: The job.
        secret: Its tenant's secret.
    """

    def __init__(self, request: TrackerRequest, secret: WandbSecret) -> None:
        # Read at import: all files of the library are in the scratch folder.
        for name in ("DIR", "CACHE_DIR", "CONFIG_DIR", "DATA_DIR", "ARTIFACT_DIR"):
            os.environ[f"WANDB_{name}"] = request.scratch_dir
        import wandb

        self._wandb = wandb
        # Nothing of the machine: no console, code, host name, user, or use of its hardware.
        settings = wandb.Settings(
            api_key=secret.api_key.get_secret_value(),
            base_url=secret.address,
            console="off",
            disable_code=True,
            disable_git=True,
            host="training-worker",
            init_timeout=_INIT_TIMEOUT_S,
            silent=True,
            x_disable_machine_info=True,
            x_disable_meta=True,
            x_disable_stats=True,
            x_save_requirements=False,
        )
        self._run = wandb.init(
            project=secret.project,
            entity=secret.entity,
            id=request.job_id,
            name=request.name,
            config=request.config,
            resume="allow",
            dir=request.scratch_dir,
            settings=settings,
        )

    def log(self, step: int, values: dict[str, float]) -> None:
        """Log the values of a step."""
        self._run.log(values, step=step)

    def log_image(self, step: int, path: Path, caption: str) -> None:
        """Log a validation image."""
        image = self._wandb.Image(str(path), caption=caption)
        self._run.log({f"validation/{caption}": image}, step=step)

    def finish(self, end: RunEnd) -> None:
        """Send what is left, and end the run."""
        if end == "interrupted":
            self._run.mark_preempting()
        self._run.finish(exit_code=0 if end == "succeeded" else 1)
