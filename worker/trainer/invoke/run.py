"""One run of the library's loop, seen from its seams: steps, checkpoints, replay, stop.

The library's loop always starts at its first step. A run that goes on from a checkpoint lets it
walk to the checkpoint's step without computing anything, and takes the saved state over there: the
data come in the right order, and the learning rate is where it was.
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
from worker.trainer.loop import ADVICE, Schedule
from worker.trainer.lora import lora_weight_name
from worker.trainer.rng import StatelessRng

Forward = Callable[[Batch, dict[str, Any]], torch.Tensor]


class Run:
    """What is known of a run.

    Args:
        request: What is carried out.
        config: The library's config; its intervals are changed for saves of our own.
        schedule: When what is due.
        plan: The batches.
        draws: Decide everything random.
        dataset: The samples they are made of.
        checkpoints: Where the state goes.
        resume: Takes over the state to go on from.
        first_step: Its step; 0 starts anew.
        emit: Takes the events.
        stop: Asked at each step.
    """

    def __init__(
        self,
        request: TrainerRequest,
        config: Any,
        schedule: Schedule,
        plan: BatchPlan,
        draws: StatelessRng,
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
        self._draws = draws
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
        """What may be trained, by its name in the names of weights."""
        self._state: TrainingState | None = None
        self.results: Path | None = None
        """What the library told that it wrote at its last save: a file or a folder."""

    @property
    def patches(self) -> frozenset[str]:
        """The patches applied."""
        return frozenset(self._request.patches)

    @property
    def replays(self) -> bool:
        """Whether the loop has not come to the step to go on from."""
        return self._done < self._first_step

    @property
    def state(self) -> TrainingState:
        """What a step changes; there once the library has made its optimizer."""
        assert self._state is not None
        return self._state

    @property
    def history(self) -> LossHistory:
        """The steps so far."""
        return self.state.history

    def watch(self, optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
        """Take a new optimizer over; it steps only where something is computed."""
        ids = {id(it) for group in optimizer.param_groups for it in group["params"]}
        parameters = {
            lora_weight_name(model, path): parameter
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

        # The learning-rate scheduler wraps it once more, and wants a method.
        optimizer.step = MethodType(step_or_not, optimizer)  # type: ignore[method-assign]
        self._stop.check()
        self._meter.starts_at(0)
        return optimizer

    def loss(self, forward: Forward, arguments: dict[str, Any]) -> torch.Tensor:
        """The loss of the batch that the library asks for."""
        self._stop.beat()
        data = arguments["data_batch"]
        batch: Batch | None = data["batch"]
        if batch is None:
            return torch.zeros((), requires_grad=True)
        self._samples += batch.samples
        # For whatever is drawn from the global generators, so that it is the same after a resume.
        torch.manual_seed(self._draws.number("batch", data["number"]))
        loss = forward(batch, arguments)
        if "group_mean" in self.patches:
            loss = loss * self._share(data["number"], len(batch.samples))
        return loss

    def _share(self, number: int, samples: int) -> float:
        """What makes of the library's mean of means the mean of all samples of a step."""
        epoch, place = divmod(number, self._plan.batches_per_epoch)
        accumulation = self._config.gradient_accumulation_steps
        step = epoch * self._plan.steps_per_epoch + place // accumulation
        first, end = self._plan.of_step(step)
        total = sum(len(self._plan.batch(it)[1]) for it in range(first, end))
        return float(samples * accumulation / total)

    def log(self, _accelerator: Any, values: Mapping[str, Any], step: int | None = None) -> None:
        """Stands for ``Accelerator.log``, which the library calls once a step.

        Raises:
            DivergedError: The loss is no number.
            InterruptedRun: It was asked to stop, and has nothing to save.
        """
        if "train_loss" not in values or step is None:
            return
        self._done = step
        self._config.save_every_n_steps = self._save_every
        if step <= self._first_step:
            self._stop.check()
            if step == self._first_step:
                self._go_on()
            return
        samples, self._samples = self._samples, []
        loss = float(values["train_loss"])
        if not math.isfinite(loss):
            sources = [self._dataset.samples[sample].source for sample in samples]
            raise DivergedError("the loss", step, sources, ADVICE)
        self.history.add(loss, self._rate)
        total = self._schedule.total_steps
        # Asked once: a signal that comes while this step is being saved ends the next one.
        self._stopping = self._stop.is_set
        ends = step == total and "final_save" in self.patches
        if self._stopping or ends:
            self._config.save_every_n_steps = step
        self._meter.tell(
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

    def _go_on(self) -> None:
        self._resume(self.state)
        self._meter.starts_at(self._done)

    def save(self, save: Callable[..., None], **arguments: Any) -> None:
        """Let the library save, unless this step is saved already; then keep the state.

        Raises:
            DivergedError: A weight is no number.
            InterruptedRun: It was asked to stop.
        """
        if self._done <= self._saved:
            return
        models = [it for it in arguments.values() if isinstance(it, torch.nn.Module)]
        if "exact_save" not in self.patches or self._request.training.type != "SDXL_FINETUNE":
            models = []
        if not all_finite(self.state.parameters):
            raise DivergedError("a weight after the update", self._done, (), ADVICE)
        with _weights_kept(models):
            save(**arguments)
        self._checkpoints.save(self.state)
        self._saved = self._done
        if self._stopping and self._done < self._schedule.total_steps:
            raise InterruptedRun

    def validate(self, validate: Callable[..., None], **arguments: Any) -> None:
        """Let the library make validation images, unless that was done before the checkpoint."""
        if self.replays:
            return
        self._stop.beat()
        with _modes_kept(self.models):
            validate(**arguments)
        self._meter.starts_at(self._done)

    def validated(self, made: list[tuple[int, int, Path]]) -> None:
        """Images were made: the number of the prompt and of the image, both from 1, and the file.

        Raises:
            InterruptedRun: It was asked to stop, and this step is saved.
        """
        store = Store(self._request.store_url)
        prefix = validation_prefix(self._request.job_id, self._done, self._request.attempt)
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
    """The models' weights are what they were, bit for bit, whatever they are cast to meanwhile."""
    before = [(it, it.data) for model in models for it in model.parameters()]
    yield
    for parameter, values in before:
        parameter.data = values


@contextmanager
def _modes_kept(models: Mapping[str, Any]) -> Iterator[None]:
    """Every model is back in its mode afterwards."""
    before = {name: model.training for name, model in models.items()}
    yield
    for name, model in models.items():
        model.train(before[name])
