"""The training loop, the same for every recipe.

One step: the gradients of a group of batches, averaged over their samples; clip; the optimizer. The
loop decides when to save, to validate and to stop, and does not know the model. It reads the losses
of a step while the GPU makes the next one.
"""

from collections import deque
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial

import torch
from diffusers.optimization import get_scheduler

from tasks.dataset import Dataset
from tasks.events import Progress
from tasks.jobs.pipeline import PipelineConfig
from worker.trainer.checkpoint import Checkpoints, LossHistory, TrainingState, all_finite
from worker.trainer.compute.determinism import Determinism
from worker.trainer.data.batches import Batch, BatchPlan, TrainingData
from worker.trainer.errors import DivergedError, InterruptedRun
from worker.trainer.event_pipe import Emit, ProgressMeter, StopSwitch
from worker.trainer.optimizer import WeightAverage, new_optimizer, set_rates
from worker.trainer.rng import StatelessRng
from worker.trainer.training_type import Recipe

DIVERGED_ADVICE = (
    "lower the learning rate, set max_grad_norm to 1.0, "
    "or set weight_dtype to bfloat16 if it is float16"
)


@dataclass(frozen=True)
class Schedule:
    """When the loop saves, validates and ends, in weight updates.

    Attributes:
        total_steps: The run's length.
        save_every: The interval of checkpoints.
        validate_every: The interval of validations; 0 for none.
        validates_at_start: Whether there is one before the first update.
        epoch_steps: The steps of an epoch, if the interval of checkpoints is a number of epochs.
    """

    total_steps: int
    save_every: int
    validate_every: int = 0
    validates_at_start: bool = False
    epoch_steps: int | None = None

    def saves_at(self, done: int) -> bool:
        """Whether a checkpoint is due after this many updates."""
        return done == self.total_steps or done % self.save_every == 0

    def validates_at(self, done: int) -> bool:
        """Whether validation is due after this many updates."""
        if done == 0:
            return self.validates_at_start
        return self.validate_every > 0 and done % self.validate_every == 0

    def epoch_at(self, done: int) -> int | None:
        """Return the epochs that this many updates have completed; None if it saves by steps."""
        return None if self.epoch_steps is None else done // self.epoch_steps


class StepLosses:
    """The losses of a step, on their way from the GPU.

    Args:
        losses: The loss of each sample, (samples,) float64.
        step: The weight updates before this one.
        samples: The samples of each batch of the step.
        rate: The learning rate.
    """

    def __init__(
        self, losses: torch.Tensor, step: int, samples: Sequence[Sequence[int]], rate: float
    ) -> None:
        # Into pinned memory: the CPU launches the next kernels before the copy is made.
        self._losses = losses.to("cpu", non_blocking=True)
        self._copied: torch.cuda.Event | None = None
        if losses.is_cuda:
            self._copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._copied.record()
        self._step, self._samples, self._rate = step, samples, rate

    def add_to(self, history: LossHistory, dataset: Dataset) -> None:
        """Add the step to the history.

        Raises:
            DivergedError: NaN or infinity in a loss.
        """
        if self._copied is not None:
            self._copied.synchronize()
        if not self._losses.isfinite().all():
            numbers = [sample for batch in self._samples for sample in batch]
            finite = self._losses.isfinite().tolist()
            bad = [sample for sample, good in zip(numbers, finite, strict=True) if not good]
            sources = [dataset.samples[sample].source for sample in bad]
            raise DivergedError("the loss", self._step + 1, sources, DIVERGED_ADVICE)
        history.add(self._losses.mean().item(), self._rate)


def schedule_of(config: PipelineConfig, plan: BatchPlan) -> Schedule:
    """Return the schedule, its epochs counted in steps."""
    per_epoch = plan.steps_per_epoch
    validate_every = config.validate_every_n_steps or (
        (config.validate_every_n_epochs or 0) * per_epoch
    )
    return Schedule(
        config.max_train_steps or (config.max_train_epochs or 0) * per_epoch,
        config.save_every_n_steps or (config.save_every_n_epochs or 0) * per_epoch,
        validate_every if config.validation_prompts else 0,
        config.validate_at_start and bool(config.validation_prompts),
        None if config.save_every_n_steps else per_epoch,
    )


def rate_factors(config: PipelineConfig, total_steps: int) -> Callable[[int], float]:
    """Return the factor of the base learning rates at each step, by diffusers' own schedulers.

    A scheduler's only state is its step, counted from 0: a run resumes by asking for a step's
    factor.
    """
    # The scheduler needs an optimizer; this one trains a single number.
    stand_in = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    scheduler = get_scheduler(
        config.lr_scheduler,
        stand_in,
        num_warmup_steps=config.lr_warmup_steps,
        num_training_steps=total_steps,
    )
    factor = scheduler.lr_lambdas[0]
    return lambda step: float(factor(step))


def new_state(recipe: Recipe, config: PipelineConfig, device: torch.device) -> TrainingState:
    """Make the state of a run before its first step."""
    parameters = recipe.parameters
    optimizer = new_optimizer(parameters, config.optimizer, config.learning_rates())
    scaler = torch.amp.GradScaler(device.type, enabled=recipe.precision.scales_loss)
    average = None
    if recipe.ema_decay is not None:
        average = WeightAverage(parameters.values(), decay=recipe.ema_decay)
    return TrainingState(parameters, optimizer, scaler, LossHistory(), average)


def train(
    recipe: Recipe,
    state: TrainingState,
    data: TrainingData,
    rng: StatelessRng,
    config: PipelineConfig,
    checkpoints: Checkpoints,
    validate: Callable[[int], None],
    determinism: Determinism,
    emit: Emit,
    stop: StopSwitch,
) -> None:
    """Train from the state's step to the end of the schedule.

    The state is saved at the schedule's steps, at the end and on a stop. ``validate`` is called
    with the step after its checkpoint, and again if a run resumes there: the state does not hold
    whether an interrupted validation was completed.

    Raises:
        DivergedError: NaN or infinity in the loss or the weights.
        InterruptedRun: The run was asked to stop; the state is saved.
    """
    schedule, history = schedule_of(config, data.plan), state.history
    factor_of, rates = rate_factors(config, schedule.total_steps), config.learning_rates()
    meter = ProgressMeter(emit)
    stop.check()
    if schedule.validates_at(history.steps):
        with state.published_in_place():
            validate(history.steps)
    unread: deque[StepLosses] = deque()
    meter.start_from(history.steps)
    with closing(data.batches(history.steps, schedule.total_steps, recipe.draws)) as batches:
        for step in range(history.steps, schedule.total_steps):
            rate = set_rates(state.optimizer, factor_of(step), rates)
            samples = data.plan.samples_of_step(step)

            seed, group = rng.number("step", step), [next(batches) for _ in samples]
            losses = determinism.run(  # (samples,)
                partial(_accumulate_gradients, recipe, state.scaler, seed, group),
                state.optimizer.zero_grad,
            )
            unread.append(StepLosses(losses, step, samples, rate))
            _update_weights(state, config.max_grad_norm)

            done = step + 1
            # Read once: a signal during this step's checkpoint stops the run after the next step.
            stopping = stop.is_set
            due = stopping or schedule.saves_at(done)
            validates = schedule.validates_at(done)
            # A checkpoint and an image are made of weights whose losses are all known to be finite.
            late = len(unread) - (0 if due or validates else 1)
            for _ in range(late):
                unread.popleft().add_to(history, data.dataset)
            if due:
                _save(state, checkpoints, schedule)
            if late:
                meter.report(_progress(history, schedule), always=due)
            if stopping and done < schedule.total_steps:
                raise InterruptedRun
            if validates:
                _validate(state, checkpoints, schedule, validate, saved=due)
                meter.start_from(done)


def _accumulate_gradients(
    recipe: Recipe,
    scaler: torch.amp.GradScaler,
    seed: int,
    group: Sequence[Batch],
) -> torch.Tensor:
    """Add up the gradients of a step's batches.

    Args:
        recipe: Makes the losses.
        scaler: Scales the loss.
        seed: Seeds the draws that a model makes itself, such as dropout.
        group: The batches of the step.

    Returns:
        The loss of each sample of the step, (samples,) float64, on the device.
    """
    torch.manual_seed(seed)
    count = sum(len(batch.samples) for batch in group)
    losses = []
    for batch in group:
        with recipe.precision.autocast():
            batch_losses = recipe.losses(batch)  # (B,)
        # The mean over all samples of the step, however they are split into batches.
        torch.autograd.backward(scaler.scale(batch_losses.sum() / count))
        losses.append(batch_losses.detach())
    return torch.cat(losses).double()


def _update_weights(state: TrainingState, max_grad_norm: float | None) -> None:
    parameters = list(state.parameters.values())
    if max_grad_norm is not None:
        state.scaler.unscale_(state.optimizer)
        torch.nn.utils.clip_grad_norm_(parameters, max_grad_norm)
    state.scaler.step(state.optimizer)
    state.scaler.update()
    state.optimizer.zero_grad(set_to_none=True)
    if state.average is not None:
        state.average.step(parameters)


def _progress(history: LossHistory, schedule: Schedule) -> Progress:
    return Progress(
        stage="train",
        done=history.steps,
        total=schedule.total_steps,
        unit="steps",
        loss=history.losses[-1],
        learning_rate=history.learning_rates[-1],
    )


def _save(state: TrainingState, checkpoints: Checkpoints, schedule: Schedule) -> None:
    done = state.history.steps
    if not all_finite(state.parameters):
        raise DivergedError("a weight after the update", done, (), DIVERGED_ADVICE)
    checkpoints.save(state, epoch=schedule.epoch_at(done), scheduled=schedule.saves_at(done))


def _validate(
    state: TrainingState,
    checkpoints: Checkpoints,
    schedule: Schedule,
    validate: Callable[[int], None],
    *,
    saved: bool,
) -> None:
    """Validate the published weights; if interrupted, save a state that is not saved yet."""
    try:
        with state.published_in_place():
            validate(state.history.steps)
    except InterruptedRun:
        if not saved:
            _save(state, checkpoints, schedule)
        raise
