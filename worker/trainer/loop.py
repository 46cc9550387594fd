"""The training loop, the same for every recipe.

One step: the gradients of a group of batches, averaged over their samples; clip; AdamW. It says
when to save and when to stop, and knows nothing of what is trained.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

import torch
from diffusers.optimization import get_scheduler

from tasks.dataset import DataSet
from tasks.events import Progress
from tasks.jobs.flux_lora import FluxLoraConfig
from worker.trainer.batches import Batch, BatchPlan, TrainingData
from worker.trainer.checkpoint import Checkpoints, History, TrainingState, all_finite
from worker.trainer.errors import DivergedError, InterruptedRun
from worker.trainer.pipe import Emit, ProgressMeter, StopSwitch

_ADVICE = (
    "lower transformer_learning_rate, set max_grad_norm to 1.0, "
    "or set weight_dtype to bfloat16 where it is float16"
)


class Recipe(Protocol):
    """What is trained, and what makes a good step of it."""

    @property
    def parameters(self) -> dict[str, torch.nn.Parameter]:
        """The trained weights by name, float32, in an order that never changes."""
        ...

    def autocast(self) -> AbstractContextManager[object]:
        """The precision of the forward pass."""
        ...

    @property
    def scales_loss(self) -> bool:
        """Whether gradients could vanish without a loss scale: where it computes in float16."""
        ...

    def losses(self, batch: Batch) -> torch.Tensor:
        """The weighted loss of each sample, (B,), float32."""
        ...


@dataclass(frozen=True)
class Schedule:
    """When what happens, in weight updates.

    Attributes:
        total_steps: The run's length.
        save_every: A checkpoint after every so many.
    """

    total_steps: int
    save_every: int


def schedule_of(config: FluxLoraConfig, plan: BatchPlan) -> Schedule:
    """The schedule, its epochs counted in steps."""
    per_epoch = plan.steps_per_epoch
    return Schedule(
        config.max_train_steps or (config.max_train_epochs or 0) * per_epoch,
        config.save_every_n_steps or (config.save_every_n_epochs or 0) * per_epoch,
    )


def learning_rates(config: FluxLoraConfig, total_steps: int) -> Callable[[int], float]:
    """The learning rate of each step, counted from 0, by diffusers' own schedulers.

    A scheduler's state is its step and nothing else, so that asking for a step's rate is all there
    is to resuming it.
    """
    base = config.learning_rate()
    # The scheduler insists on an optimizer; what it multiplies is one number.
    stand_in = torch.optim.SGD([torch.zeros(1)], lr=base)
    scheduler = get_scheduler(
        config.lr_scheduler,
        stand_in,
        num_warmup_steps=config.lr_warmup_steps,
        num_training_steps=total_steps,
    )
    factor = scheduler.lr_lambdas[0]
    return lambda step: base * float(factor(step))


def new_state(recipe: Recipe, config: FluxLoraConfig, device: torch.device) -> TrainingState:
    """The state of a run before its first step."""
    settings = config.optimizer
    if settings.optimizer_type != "AdamW":
        raise AssertionError("the config refuses other optimizers")
    optimizer = torch.optim.AdamW(
        list(recipe.parameters.values()),
        lr=config.learning_rate(),
        betas=(settings.beta1, settings.beta2),
        eps=settings.epsilon,
        weight_decay=settings.weight_decay,
    )
    scaler = torch.amp.GradScaler(device.type, enabled=recipe.scales_loss)
    return TrainingState(recipe.parameters, optimizer, scaler, History())


def train(
    recipe: Recipe,
    state: TrainingState,
    data: TrainingData,
    config: FluxLoraConfig,
    checkpoints: Checkpoints,
    emit: Emit,
    stop: StopSwitch,
) -> None:
    """Train from where the state is to the end of the schedule.

    Args:
        recipe: What to train.
        state: Changed in place.
        data: The batches.
        config: The rest.
        checkpoints: Where the state is saved: at the schedule's steps, at the end and on a stop.
        emit: Takes progress.
        stop: Asked after each step.

    Raises:
        DivergedError: NaN or infinity in the loss or the weights.
        InterruptedRun: It was asked to stop; the state is saved.
    """
    schedule = schedule_of(config, data.plan)
    rate_of = learning_rates(config, schedule.total_steps)
    parameters = list(state.parameters.values())
    history = state.history
    meter = ProgressMeter(emit)
    stop.check()
    batches = data.batches(history.steps, schedule.total_steps)
    meter.starts_at(history.steps)
    for step in range(history.steps, schedule.total_steps):
        first, end = data.plan.of_step(step)
        group = [data.plan.batch(number)[1] for number in range(first, end)]
        samples = [sample for members in group for sample in members]
        rate = rate_of(step)
        state.optimizer.param_groups[0]["lr"] = rate

        losses = []
        for _ in group:
            batch = next(batches)
            with recipe.autocast():
                batch_losses = recipe.losses(batch)  # (B,)
            # A mean over all samples of the group, however they are split into batches.
            torch.autograd.backward(state.scaler.scale(batch_losses.sum() / len(samples)))
            losses.append(batch_losses.detach())
        # The step's one wait for the GPU.
        values = torch.cat(losses).double().cpu()  # (samples,)
        _check_finite(values, step, samples, data.data_set)
        if config.max_grad_norm is not None:
            state.scaler.unscale_(state.optimizer)
            torch.nn.utils.clip_grad_norm_(parameters, config.max_grad_norm)
        state.scaler.step(state.optimizer)
        state.scaler.update()
        state.optimizer.zero_grad(set_to_none=True)
        history.add(values.mean().item(), rate)

        done = step + 1
        # Asked once: a signal that comes while this step is being saved ends the next one.
        stopping = stop.is_set
        due = stopping or done == schedule.total_steps or done % schedule.save_every == 0
        if due:
            if not all_finite(state.parameters):
                raise DivergedError("a weight after the update", done, (), _ADVICE)
            checkpoints.save(state)
        meter.tell(
            Progress(
                stage="train",
                done=done,
                total=schedule.total_steps,
                unit="steps",
                loss=history.losses[-1],
                learning_rate=rate,
            ),
            always=due,
        )
        if stopping and done < schedule.total_steps:
            raise InterruptedRun


def _check_finite(
    losses: torch.Tensor, step: int, samples: Sequence[int], data_set: DataSet
) -> None:
    if losses.isfinite().all():
        return
    bad = [sample for sample, loss in zip(samples, losses, strict=True) if not loss.isfinite()]
    sources = [data_set.samples[sample].source for sample in bad]
    raise DivergedError("the loss", step + 1, sources, _ADVICE)
