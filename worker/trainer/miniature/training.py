"""How each miniature model is trained: its plan, its log, its steps and its command line."""

import argparse
import copy
import json
import math
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from worker.trainer.tiny_models import save_pipeline

_Batch = TypeVar("_Batch")

SEED = 22
REPORT_EVERY = 100
_SAVE_EVERY = 1000
_WARM_UP = 300
_RATE, _EMA = 1.2e-3, 0.999


@dataclass(frozen=True)
class Plan:
    """How much is trained.

    Attributes:
        vae_steps: Steps of the VAE.
        steps: Steps of the transformer or the UNet.
        images: Images that it sees, again and again.
    """

    vae_steps: int
    steps: int
    images: int = 20000


class Log:
    """What a training did, kept in a file from its first step on."""

    def __init__(self, path: Path, plan: Plan) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path, self._began = path, time.monotonic()
        self._values: dict[str, Any] = {"seed": SEED, **vars(plan), "losses": {}}
        self._values |= {"torch": torch.__version__, "threads": torch.get_num_threads()}

    def note(self, part: str, step: int, loss: float) -> None:
        """Add a loss."""
        self._values["losses"].setdefault(part, []).append([step, round(loss, 5)])
        self._values["hours"] = round((time.monotonic() - self._began) / 3600, 2)
        self._path.write_text(json.dumps(self._values) + "\n", "utf-8")
        sys.stdout.write(f"{part}, step {step}: {loss:.5f}\n")
        sys.stdout.flush()


def train_denoiser(
    part: str,
    model: Any,
    batches: Iterable[_Batch],
    loss_of: Callable[[_Batch], torch.Tensor],
    steps: int,
    log: Log,
    save: Callable[[Any], None],
) -> None:
    """Train a transformer or a UNet, and save the mean of its last weights at times.

    Args:
        part: Its name in a pipeline.
        model: The model.
        batches: As many as there are steps, or more.
        loss_of: Returns the loss of a batch.
        steps: Steps.
        log: Gets the losses.
        save: Saves a model of mean weights.
    """
    average: Any = get_ema_multi_avg_fn
    averaged: Any = AveragedModel(model, multi_avg_fn=average(_EMA))
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=_RATE, betas=(0.9, 0.98), weight_decay=0.01, fused=True
    )
    losses: list[float] = []
    for step, batch in zip(range(steps), batches, strict=False):
        set_rate(optimizer, _RATE, step, steps)
        loss = loss_of(batch)
        take_step(optimizer, loss, model)
        averaged.update_parameters(model)
        losses.append(loss.item())
        if len(losses) == REPORT_EVERY or step == steps - 1:
            log.note(part, step + 1, sum(losses) / len(losses))
            losses.clear()
        if (step + 1) % _SAVE_EVERY == 0 or step == steps - 1:
            save(averaged.module.eval())


def set_rate(optimizer: torch.optim.Optimizer, rate: float, step: int, steps: int) -> None:
    """Set the learning rate: up in a straight line, then down as half a cosine."""
    factor = min(1.0, (step + 1) / _WARM_UP) * (0.5 + 0.5 * math.cos(math.pi * step / steps))
    for group in optimizer.param_groups:
        group["lr"] = rate * max(factor, 0.01)


def take_step(optimizer: torch.optim.Optimizer, loss: torch.Tensor, model: torch.nn.Module) -> None:
    """Change the weights once."""
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()


def save_in_bfloat16(pipeline: DiffusionPipeline, folder: Path) -> None:
    """Save a pipeline in bfloat16."""
    save_pipeline(copy.deepcopy(pipeline).to(dtype=torch.bfloat16), folder)


def train_from_command_line(name: str, plan: Plan, train: Callable[[Path, Plan], None]) -> None:
    """Train a model into the folder that the command line names."""
    parser = argparse.ArgumentParser(description=f"Train the miniature {name} on a CPU.")
    parser.add_argument("folder", type=Path)
    for option, value in vars(plan).items():
        parser.add_argument(f"--{option.replace('_', '-')}", type=int, default=value)
    arguments = vars(parser.parse_args())
    train(arguments.pop("folder"), Plan(**arguments))
