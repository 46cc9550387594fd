"""One run of the library's loop, controlled from its calls: steps, checkpoints, replay, stop.

The library's loop always starts at its first step. A run that resumes lets it iterate to the
checkpoint's step without computing anything, and restores the saved state there: then the data come
in the right order, and the learning rate is the saved one.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MethodType
from typing import Any

import torch

from tasks.dataset import Dataset
from tasks.events import Artifact, Progress, ValidationImages
from tasks.stages.trainer_protocol import TrainerRequest
from tasks.store import Store, validation_prefix
from worker.trainer.checkpoint import Checkpoints, LossHistory, TrainingState, all_finite
from worker.trainer.data.batches import Batch, BatchPlan
from worker.trainer.errors import DivergedError, InterruptedRun
from worker.trainer.event_pipe import Emit, ProgressMeter, StopSwitch
from worker.trainer.loop import DIVERGED_ADVICE, Schedule
from worker.trainer.lora import lora_weight_name
from worker.trainer.rng import StatelessRng

Forward = Callable[[Batch, dict[str, Any]], torch.Tensor]


class Run:
    """The state of a run.

    Args:
        request: The request.
        config: The library's config; its save interval is changed for our own saves.
        schedule: When to save, validate and end.
        plan: The plan of the batches.
        rng: Makes the random draws.
        dataset: The samples.
        checkpoints: Saves the state.
        resume: Restores the state to resume from.
        first_step: The step of that state; 0 starts from the beginning.
        emit: Takes the events.
        stop: Checked at each step.
    """

    def __init__(
        self,
        request: TrainerRequest,
        config: Any,
        schedule: Schedule,
        plan: BatchPlan,
        rng: StatelessRng,
        dataset: Dataset,
        checkpoints: Checkpoints,
        resume: Callable[[TrainingState], None],
        first_step: int,
        emit: Emit,
        stop: StopSwitch,
    ) -> None:
        self._request = request
        self._config = config
        self._save_every = config.save_every_n_steps
        self._schedule = schedule
        self._plan = plan
        self._rng = rng
        self._dataset = dataset
        self._checkpoints = checkpoints
        self._resume = resume
        self._first_step = first_step
        self._emit = emit
        self._meter = ProgressMeter(emit)
        self._stop = stop
        self._stopping = False
        self._done = 0
        self._saved = first_step
        self._rate = 0.0
        self._samples: list[int] = []
        self.models: dict[str, Any] = {}
        """The models that may be trained, by their names in the names of weights."""
        self._state: TrainingState | None = None
        self.results: Path | None = None
        """The file or folder that the library wrote at its last save."""

    @property
    def patches(self) -> frozenset[str]:
        """The patches."""
        return frozenset(self._request.patches)

    @property
    def replays(self) -> bool:
        """Whether the loop has not reached the step to resume from."""
        return self._done < self._first_step

    @property
    def state(self) -> TrainingState:
        """The training state, which exists once the library has made its optimizer."""
        assert self._state is not None
        return self._state

    @property
    def history(self) -> LossHistory:
        """The steps so far."""
        return self.state.history

    def watch(self, optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
        """Take over the new optimizer: it does not step during the replay."""
        ids = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        parameters = {
            lora_weight_name(model, path.removesuffix(".default.weight")): parameter
            for model, module in self.models.items()
            for path, parameter in module.named_parameters()
            if id(parameter) in ids
        }
        scaler = torch.amp.GradScaler("cpu", enabled=False)
        self._state = TrainingState(parameters, optimizer, scaler, LossHistory())
        step = optimizer.step

        def step_or_not(_: torch.optim.Optimizer, closure: Any = None) -> Any:
            if self.replays:
                return None
            group = optimizer.param_groups[0]
            self._rate = float(group["lr"]) * float(group.get("d", 1.0))
            return step(closure)

        # The learning-rate scheduler wraps it again, and needs a method.
        optimizer.step = MethodType(step_or_not, optimizer)  # type: ignore[method-assign]
        self._stop.check()
        self._meter.start_from(0)
        return optimizer

    def loss(self, forward: Forward, arguments: dict[str, Any]) -> torch.Tensor:
        """Return the loss of the batch that the library computes."""
        self._stop.beat()
        data = arguments["data_batch"]
        batch: Batch | None = data["batch"]
        if batch is None:
            return torch.zeros((), requires_grad=True)
        self._samples += batch.samples
        # Draws from the global generators are the same after a resume.
        torch.manual_seed(self._rng.number("batch", data["number"]))
        loss = forward(batch, arguments)
        if "group_mean" in self.patches:
            loss = loss * self._share(data["number"], len(batch.samples))
        return loss

    def _share(self, number: int, samples: int) -> float:
        """Return the factor that makes the library's mean of means the mean of a step's samples."""
        epoch, place = divmod(number, self._plan.batches_per_epoch)
        accumulation = self._config.gradient_accumulation_steps
        step = epoch * self._plan.steps_per_epoch + place // accumulation
        first, end = self._plan.of_step(step)
        total = sum(len(self._plan.batch(number)[1]) for number in range(first, end))
        return float(samples * accumulation / total)

    def log(self, _accelerator: Any, values: Mapping[str, Any], step: int | None = None) -> None:
        """Replace ``Accelerator.log``, which the library calls once a step.

        Raises:
            DivergedError: The loss is NaN or infinity.
            InterruptedRun: The run was asked to stop, and has nothing to save.
        """
        if "train_loss" not in values or step is None:
            return
        self._done = step
        self._config.save_every_n_steps = self._save_every
        if step <= self._first_step:
            self._stop.check()
            if step == self._first_step:
                self._resume(self.state)
                self._meter.start_from(self._done)
            return
        samples, self._samples = self._samples, []
        loss = float(values["train_loss"])
        if not math.isfinite(loss):
            sources = [self._dataset.samples[sample].source for sample in samples]
            raise DivergedError("the loss", step, sources, DIVERGED_ADVICE)
        self.history.add(loss, self._rate)
        total = self._schedule.total_steps
        # Read once: a signal during this step's checkpoint stops the run after the next step.
        self._stopping = self._stop.is_set
        ends = step == total and "final_save" in self.patches
        if self._stopping or ends:
            self._config.save_every_n_steps = step
        self._meter.report(
            Progress(
                stage="train",
                done=step,
                total=total,
                unit="steps",
                loss=loss,
                learning_rate=self._rate,
            ),
            always=self._stopping or ends,
        )

    def save(self, save: Callable[..., None], **arguments: Any) -> None:
        """Let the library save, unless this step is saved already; then save the state.

        Raises:
            DivergedError: A weight is NaN or infinity.
            InterruptedRun: The run was asked to stop.
        """
        if self._done <= self._saved:
            return
        models = [
            argument for argument in arguments.values() if isinstance(argument, torch.nn.Module)
        ]
        if "exact_save" not in self.patches or self._request.training.type != "SDXL_FINETUNE":
            models = []
        if not all_finite(self.state.parameters):
            raise DivergedError("a weight after the update", self._done, (), DIVERGED_ADVICE)
        with _weights_kept(models):
            save(**arguments)
        schedule, done = self._schedule, self._done
        self._checkpoints.save(
            self.state, epoch=schedule.epoch_at(done), scheduled=schedule.saves_at(done)
        )
        self._saved = self._done
        if self._stopping and self._done < self._schedule.total_steps:
            raise InterruptedRun

    def validate(self, validate: Callable[..., None], **arguments: Any) -> None:
        """Let the library make validation images, unless it replays earlier steps."""
        if self.replays:
            return
        self._stop.beat()
        with _modes_kept(self.models):
            validate(**arguments)
        self._meter.start_from(self._done)

    def validated(self, made: list[tuple[int, int, Path]]) -> None:
        """Store validation images and emit their event.

        Args:
            made: The numbers of the prompt and of the image, both from 1, and the file.

        Raises:
            InterruptedRun: The run was asked to stop, and this step is saved.
        """
        store = Store(self._request.store_url)
        prefix = validation_prefix(self._request.job_id, self._done, self._request.start_id)
        images: list[Artifact] = []
        for prompt, image, path in made:
            name = f"validation-{self._done:06d}-{prompt}-{image}{path.suffix}"
            artifact = store.put_artifact(f"{prefix}/{name}", path)
            images.append(artifact.model_copy(update={"name": name}))
        self._emit(ValidationImages(step=self._done, images=tuple(images)))
        if self._saved == self._done:
            self._stop.check()


@contextmanager
def _weights_kept(models: list[torch.nn.Module]) -> Iterator[None]:
    """Restore the models' weights bit for bit: saving casts them."""
    before = [(parameter, parameter.data) for model in models for parameter in model.parameters()]
    yield
    for parameter, values in before:
        parameter.data = values


@contextmanager
def _modes_kept(models: Mapping[str, Any]) -> Iterator[None]:
    """Restore the mode of each model."""
    before = {name: model.training for name, model in models.items()}
    yield
    for name, model in models.items():
        model.train(before[name])
