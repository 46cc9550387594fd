"""Checkpoints: the exact state of a run in one safetensors file, and the published files.

They hold no random state, since draws are functions of the step (``rng``), and no pickle: only
tensors and a little JSON.
"""

import json
import math
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel
from pydantic_core import to_jsonable_python
from safetensors import SafetensorError

from tasks.events import Artifact, CheckpointSaved
from tasks.stages.trainer_protocol import TrainerRequest
from tasks.store import Store, checkpoint_prefix
from worker.trainer.compute.determinism import Determinism
from worker.trainer.errors import DamagedFileError, ForeignStateError
from worker.trainer.event_pipe import Emit, phase
from worker.trainer.export.safetensors_file import SafetensorsFile, write_safetensors
from worker.trainer.optimizer import WeightAverage, optimizer_tensors, restore_optimizer

STATE_FILE = "state.safetensors"
WriteResults = Callable[[Path, str, Mapping[str, str], Mapping[str, torch.Tensor]], list[Path]]
"""Writes the published files; see ``Recipe.write``."""

_FORMAT = "training-worker state 2"
# The header's entry for the SHA-256 of the data: a flipped bit would otherwise become a weight.
_DIGEST = "sha256"
_REMEDY = "resume from an earlier checkpoint, or start from the beginning"


@dataclass
class LossHistory:
    """Loss and learning rate of every step of a run, those before a resume included."""

    losses: list[float] = field(default_factory=list)
    learning_rates: list[float] = field(default_factory=list)

    @property
    def steps(self) -> int:
        """Weight updates made."""
        return len(self.losses)

    def add(self, loss: float, learning_rate: float) -> None:
        """Add a step."""
        self.losses.append(loss)
        self.learning_rates.append(learning_rate)

    def tensor(self) -> torch.Tensor:
        """Return a row of loss and learning rate for each step, (steps, 2) float64."""
        rows = list(zip(self.losses, self.learning_rates, strict=True))
        return torch.tensor(rows, dtype=torch.float64).reshape(-1, 2)

    def restore(self, tensor: torch.Tensor) -> None:
        """Restore what ``tensor`` returned."""
        self.losses, self.learning_rates = tensor[:, 0].tolist(), tensor[:, 1].tolist()


@dataclass
class TrainingState:
    """Everything that a step changes.

    Attributes:
        parameters: The trained weights by name, float32.
        optimizer: The optimizer of exactly these weights.
        scaler: Scales the loss in float16.
        history: The steps so far.
        average: The moving average of the weights, if the config asks for one.
    """

    parameters: dict[str, torch.nn.Parameter]
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    history: LossHistory
    average: WeightAverage | None = None

    def published(self) -> dict[str, torch.Tensor]:
        """Return the weights to publish by name: the average, if there is one."""
        if self.average is None:
            return {name: parameter.detach() for name, parameter in self.parameters.items()}
        return dict(zip(self.parameters, self.average.shadow_params, strict=True))

    @contextmanager
    def published_in_place(self) -> Iterator[None]:
        """Put the published weights into the models until the context ends."""
        if self.average is None:
            yield
            return
        parameters = list(self.parameters.values())
        self.average.store(parameters)
        self.average.copy_to(parameters)
        try:
            yield
        finally:
            self.average.restore(parameters)

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return all tensors of the state by name."""
        tensors: dict[str, torch.Tensor] = {"history": self.history.tensor()}
        for name, parameter in self.parameters.items():
            tensors[f"weights/{name}"] = parameter
        if self.average is not None:
            tensors |= {f"average/{name}": tensor for name, tensor in self.published().items()}
        return tensors | optimizer_tensors(self.optimizer, self.parameters)

    def restore(self, tensors: Mapping[str, torch.Tensor], scaler: dict[str, Any]) -> None:
        """Restore a saved state.

        Args:
            tensors: What ``tensors`` returned.
            scaler: The scaler's state.

        Raises:
            KeyError: A trained weight, or a number of the optimizer's, is missing.
            ValueError: A tensor's shape is not the weight's.
        """
        for name, parameter in self.parameters.items():
            saved = tensors[f"weights/{name}"]
            if saved.shape != parameter.shape:
                raise ValueError(f"{name} has shape {tuple(saved.shape)}")
            parameter.data.copy_(saved)
        restore_optimizer(self.optimizer, self.parameters, tensors)
        self.history.restore(tensors["history"])
        if self.average is not None:
            for name, average in self.published().items():
                average.copy_(tensors[f"average/{name}"])
            # Its decay depends on the number of steps.
            self.average.optimization_step = self.history.steps
        if scaler:
            self.scaler.load_state_dict(scaler)


class Checkpoints:
    """The checkpoints of one run.

    Args:
        request: Names the job, the start and the scratch folder.
        store: Keeps the checkpoints.
        identity: What a state must agree in to be resumed, by name, as plain JSON.
        versions: The versions of the libraries that compute.
        determinism: How they compute.
        write_results: Writes the published files.
        metadata_at: Returns the entries for their headers at a step.
        emit: Takes the events.
    """

    def __init__(
        self,
        request: TrainerRequest,
        store: Store,
        identity: dict[str, object],
        versions: dict[str, str],
        determinism: Determinism,
        write_results: WriteResults,
        metadata_at: Callable[[int], Mapping[str, str]],
        emit: Emit,
    ) -> None:
        self._request = request
        self._store = store
        self._identity = identity
        self._versions = versions
        self._determinism = determinism
        self._write_results = write_results
        self._metadata_at = metadata_at
        self._emit = emit
        self._scratch = Path(request.scratch_dir)

    def save(self, state: TrainingState, *, epoch: int | None, scheduled: bool) -> None:
        """Write a checkpoint, then emit its event with ``epoch`` and ``scheduled``."""
        step = state.history.steps
        prefix = checkpoint_prefix(self._request.job_id, step, self._request.start_id)
        with phase(self._emit, "checkpoint", step):
            state_key = self._put_state(state, prefix)
        with phase(self._emit, "export", step):
            weights, *others = self._put_results(state, prefix)
        self._emit(
            CheckpointSaved(
                step=step,
                state_key=state_key,
                weights=weights,
                others=tuple(others),
                epoch=epoch,
                scheduled=scheduled,
            )
        )

    def _put_state(self, state: TrainingState, prefix: str) -> str:
        self._scratch.mkdir(parents=True, exist_ok=True)
        state_path = self._scratch / STATE_FILE
        metadata = {
            "format": _FORMAT,
            "identity": json.dumps(self._identity, sort_keys=True),
            "kernels": json.dumps(self._determinism.kernels, sort_keys=True),
            "nondeterminism": self._determinism.problem or "",
            "scaler": json.dumps(state.scaler.state_dict(), sort_keys=True),
            "step": str(state.history.steps),
            "versions": json.dumps(self._versions, sort_keys=True),
        }
        write_safetensors(state_path, state.tensors(), metadata, digests={_DIGEST: "{}"})
        state_key = f"{prefix}/{STATE_FILE}"
        self._store.put(state_key, state_path)
        state_path.unlink()
        return state_key

    def _put_results(self, state: TrainingState, prefix: str) -> list[Artifact]:
        folder = self._scratch / "results"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        metadata, weights = self._metadata_at(state.history.steps), state.published()
        artifacts = []
        for path in self._write_results(folder, self._request.name, metadata, weights):
            name = path.relative_to(folder).as_posix()
            artifact = self._store.put_artifact(f"{prefix}/{name}", path)
            artifacts.append(artifact.model_copy(update={"name": name}))
        shutil.rmtree(folder)
        return artifacts

    def step_of(self, key: str) -> int:
        """Return the step of a saved state without restoring it.

        Raises:
            DamagedFileError: The file is damaged.
        """
        path = self._fetched(key)
        try:
            with SafetensorsFile(path) as file:
                return int(file.metadata["step"])
        except (SafetensorError, KeyError, ValueError) as error:
            path.unlink()
            problem = str(error).partition("\n")[0]
            raise DamagedFileError("the training state", key, problem, _REMEDY) from error

    def resume(self, state: TrainingState, key: str) -> dict[str, str]:
        """Restore a saved state.

        Args:
            state: The state of this run, restored in place.
            key: The saved state's store key.

        Returns:
            The versions of the libraries that computed it.

        Raises:
            DamagedFileError: The file is damaged.
            ForeignStateError: The state belongs to another run.
        """
        path = self._fetched(key)
        try:
            with SafetensorsFile(path) as file:
                metadata = file.metadata
                if metadata.get("format") != _FORMAT:
                    raise ValueError("it is no training state of this version")
                if metadata[_DIGEST] != file.digest():
                    raise ValueError("its bytes have changed")
                self._check_identity(key, json.loads(metadata["identity"]))
                state.restore(file, json.loads(metadata["scaler"]))
            if state.history.steps != int(metadata["step"]):
                raise ValueError("its history and its step differ")
            versions: dict[str, str] = json.loads(metadata["versions"])
            # States of older versions do not name them.
            kernels = json.loads(metadata.get("kernels", "{}"))
            self._determinism.resume(metadata["nondeterminism"], kernels)
        except (SafetensorError, KeyError, ValueError, TypeError, IndexError) as error:
            problem = str(error).partition("\n")[0]
            raise DamagedFileError("the training state", key, problem, _REMEDY) from error
        finally:
            path.unlink()
        return versions

    def _fetched(self, key: str) -> Path:
        """Return a saved state in the scratch folder, downloaded once."""
        self._scratch.mkdir(parents=True, exist_ok=True)
        path = self._scratch / f"resumed-{key.replace('/', '-')}"
        if not path.exists():
            partial = path.with_suffix(".partial")
            self._store.download(key, partial)
            partial.rename(path)
        return path

    def _check_identity(self, key: str, saved: dict[str, object]) -> None:
        names = sorted({*saved, *self._identity})
        # Through JSON, as the saved one was: tuples become lists.
        own = json.loads(json.dumps(self._identity))
        saved = _with_defaults(saved, own, self._request.training)
        differs = [name for name in names if saved.get(name) != own.get(name)]
        if differs:
            raise ForeignStateError(key, differs)


def _with_defaults(
    saved: dict[str, object], own: dict[str, object], options: BaseModel
) -> dict[str, object]:
    """Return a saved identity with the options that its older version did not have.

    Args:
        saved: The identity, or a part of it.
        own: This run's.
        options: What this run's was made from.
    """
    filled = dict(saved)
    for name, field_info in type(options).model_fields.items():
        before, now, value = saved.get(name), own.get(name), getattr(options, name)
        if name in own and name not in saved and not field_info.is_required():
            filled[name] = to_jsonable_python(field_info.get_default(call_default_factory=True))
        elif isinstance(before, dict) and isinstance(now, dict) and isinstance(value, BaseModel):
            filled[name] = _with_defaults(before, now, value)
    return filled


def all_finite(parameters: Mapping[str, torch.nn.Parameter]) -> bool:
    """Whether no trained weight is NaN or infinity."""
    with torch.no_grad():
        largest = torch._foreach_norm(tuple(parameters.values()), math.inf)
    return bool(torch.stack(largest).isfinite().all())
