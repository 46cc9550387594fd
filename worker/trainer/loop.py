"""The training loop, the same for every recipe.

One step: the gradients of a group of batches, averaged over their samples; clip; the optimizer. It
says when to save, to validate and to stop, and knows nothing of what is trained.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel

from tasks.dataset import Dataset
from tasks.events import Progress
from tasks.jobs.pipeline import PipelineConfig
from worker.trainer.checkpoint import Checkpoints, LossHistory, TrainingState, all_finite
from worker.trainer.data.batches import Batch, BatchPlan, TrainingData
from worker.trainer.errors import DivergedError, InterruptedRun
from worker.trainer.event_pipe import Emit, ProgressMeter, StopSwitch
from worker.trainer.optimizer import new_optimizer, set_rates
from worker.trainer.rng import StatelessRng

ADVICE = (
    "lower the learning rate, set max_grad_norm to 1.0, "
    "or set weight_dtype to bfloat16 where it is float16"
)


class Recipe(Protocol):
    """What is trained, and what makes a good step of it."""

    @property
    def parameters(self) -> dict[str, torch.nn.Parameter]:
        """The trained weights by name, float32, in an order that never changes.

        A name begins with its model's (``unet.``), in the order of the config's learning rates.
        """
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

    def write(
        self, folder: Path, name: str, steps: int, weights: Mapping[str, torch.Tensor]
    ) -> list[Path]:
        """Write the results into a folder, the same bytes for the same weights.

        Args:
            folder: Empty.
            name: The job's; the files' names begin with it.
            steps: Weight updates made.
            weights: To write, by the names of ``parameters``.

        Returns:
            The files, the one to name first first.
        """
        ...


@dataclass(frozen=True)
class Schedule:
    """When what happens, in weight updates.

    Attributes:
        total_steps: The run's length.
        save_every: A checkpoint after every so many.
        validate_every: Validation after every so many; 0 for never.
    """

    total_steps: int
    save_every: int
    validate_every: int = 0

    def saves_at(self, done: int) -> bool:
        """Whether a checkpoint is due once so many updates are made."""
        return done == self.total_steps or done % self.save_every == 0

    def validates_at(self, done: int) -> bool:
        """Whether validation is due once so many updates are made."""
        return self.validate_every > 0 and done > 0 and done % self.validate_every == 0


def schedule_of(config: PipelineConfig, plan: BatchPlan) -> Schedule:
    """The schedule, its epochs counted in steps."""
    per_epoch = plan.steps_per_epoch
    validate_every = config.validate_every_n_steps or (
        (config.validate_every_n_epochs or 0) * per_epoch
    )
    return Schedule(
        config.max_train_steps or (config.max_train_epochs or 0) * per_epoch,
        config.save_every_n_steps or (config.save_every_n_epochs or 0) * per_epoch,
        validate_every if config.validation_prompts else 0,
    )


def rate_factors(config: PipelineConfig, total_steps: int) -> Callable[[int], float]:
    """What the base learning rates are multiplied by at each step, by diffusers' own schedulers.

    A scheduler's state is its step, counted from 0, and nothing else, so that asking for a step's
    factor is all there is to resuming it.
    """
    # The scheduler insists on an optimizer; what it multiplies is one number.
    stand_in = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    scheduler = get_scheduler(
        config.lr_scheduler,
        stand_in,
        num_warmup_steps=config.lr_warmup_steps,
        num_training_steps=total_steps,
    )
    factor = scheduler.lr_lambdas[0]
    return lambda step: float(factor(step))


def new_state(
    recipe: Recipe, config: PipelineConfig, device: torch.device, ema_decay: float | None = None
) -> TrainingState:
    """The state of a run before its first step.

    Args:
        recipe: What is trained.
        config: The run's.
        device: What it is trained on.
        ema_decay: Of the moving average of the weights; None keeps none.
    """
    parameters = recipe.parameters
    optimizer = new_optimizer(parameters, config.optimizer, config.learning_rates())
    scaler = torch.amp.GradScaler(device.type, enabled=recipe.scales_loss)
    average = None
    if ema_decay is not None:
        average = EMAModel(parameters.values(), decay=ema_decay)
    return TrainingState(parameters, optimizer, scaler, LossHistory(), average)


def train(
    recipe: Recipe,
    state: TrainingState,
    data: TrainingData,
    draws: StatelessRng,
    config: PipelineConfig,
    checkpoints: Checkpoints,
    validate: Callable[[int], None],
    emit: Emit,
    stop: StopSwitch,
) -> None:
    """Train from where the state is to the end of the schedule.

    Args:
        recipe: What to train.
        state: Changed in place.
        data: The batches.
        draws: Decide everything random.
        config: The rest.
        checkpoints: Where the state is saved: at the schedule's steps, at the end and on a stop.
        validate: Called with the step at the schedule's, after its checkpoint; may say, by
            InterruptedRun, that it stopped in the middle. A run that goes on from such a step
            calls it first: whether it came to an end there is not in the state.
        emit: Takes progress.
        stop: Asked after each step.

    Raises:
        DivergedError: NaN or infinity in the loss or the weights.
        InterruptedRun: It was asked to stop; the state is saved.
    """
    schedule = schedule_of(config, data.plan)
    factor_of, rates = rate_factors(config, schedule.total_steps), config.learning_rates()
    parameters = list(state.parameters.values())
    history = state.history
    meter = ProgressMeter(emit)
    stop.check()
    if schedule.validates_at(history.steps):
        with state.published_in_place():
            validate(history.steps)
    batches = data.batches(history.steps, schedule.total_steps)
    meter.starts_at(history.steps)
    for step in range(history.steps, schedule.total_steps):
        first, end = data.plan.of_step(step)
        group = [data.plan.batch(number)[1] for number in range(first, end)]
        samples = [sample for members in group for sample in members]
        # For whatever a model draws by itself, such as dropout.
        torch.manual_seed(draws.number("step", step))
        rate = set_rates(state.optimizer, factor_of(step), rates)

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
        _check_finite(values, step, samples, data.dataset)
        if config.max_grad_norm is not None:
            state.scaler.unscale_(state.optimizer)
            torch.nn.utils.clip_grad_norm_(parameters, config.max_grad_norm)
        state.scaler.step(state.optimizer)
        state.scaler.update()
        state.optimizer.zero_grad(set_to_none=True)
        if state.average is not None:
            state.average.step(parameters)
        history.add(values.mean().item(), rate)

        done = step + 1
        # Asked once: a signal that comes while this step is being saved ends the next one.
        stopping = stop.is_set
        due = stopping or schedule.saves_at(done)
        if due:
            _save(state, checkpoints)
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
        if schedule.validates_at(done):
            _validate(state, checkpoints, validate, saved=due)
            meter.starts_at(done)


def _save(state: TrainingState, checkpoints: Checkpoints) -> None:
    if not all_finite(state.parameters):
        raise DivergedError("a weight after the update", state.history.steps, (), ADVICE)
    checkpoints.save(state)


def _validate(
    state: TrainingState, checkpoints: Checkpoints, validate: Callable[[int], None], *, saved: bool
) -> None:
    """Validate what is published; on a stop in the middle of it, save what is not saved yet."""
    try:
        with state.published_in_place():
            validate(state.history.steps)
    except InterruptedRun:
        if not saved:
            _save(state, checkpoints)
        raise


def _check_finite(
    losses: torch.Tensor, step: int, samples: Sequence[int], dataset: Dataset
) -> None:
    if losses.isfinite().all():
        return
    bad = [sample for sample, loss in zip(samples, losses, strict=True) if not loss.isfinite()]
    sources = [dataset.samples[sample].source for sample in bad]
    raise DivergedError("the loss", step + 1, sources, ADVICE)
