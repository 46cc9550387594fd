"""Checkpoints: the exact state of a run in one safetensors file, and the weights beside it.

No random state and no pickle: draws are functions of the step (``draws``), and everything else is
tensors and a little JSON.
"""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from tasks.events import CheckpointSaved
from tasks.requests import TrainerRequest
from tasks.store import Store, checkpoint_prefix
from worker.trainer.errors import DamagedFileError, ForeignStateError
from worker.trainer.pipe import Emit
from worker.trainer.safetensors_file import write_safetensors

_FORMAT = "training-worker state 1"
STATE_FILE = "state.safetensors"
_REMEDY = "resume from an earlier checkpoint, or start anew"


@dataclass
class History:
    """What a run's steps came to: a row for each, kept whole through every resume."""

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
        """All of it, (steps, 2) float64."""
        rows = list(zip(self.losses, self.learning_rates, strict=True))
        return torch.tensor(rows, dtype=torch.float64).reshape(-1, 2)

    def restore(self, tensor: torch.Tensor) -> None:
        """Take over what ``tensor`` gave."""
        self.losses, self.learning_rates = tensor[:, 0].tolist(), tensor[:, 1].tolist()


@dataclass
class TrainingState:
    """Everything that a step changes.

    Attributes:
        parameters: The trained weights by name, float32.
        optimizer: Over exactly these, in this order.
        scaler: Scales the loss where the computation is float16.
        history: The steps so far.
    """

    parameters: dict[str, torch.nn.Parameter]
    optimizer: torch.optim.AdamW
    scaler: torch.amp.GradScaler
    history: History

    def tensors(self) -> dict[str, torch.Tensor]:
        """All tensors of the state by name."""
        tensors: dict[str, torch.Tensor] = {"history": self.history.tensor()}
        for name, parameter in self.parameters.items():
            tensors[f"weights/{name}"] = parameter
            for moment, value in self.optimizer.state[parameter].items():
                tensors[f"optimizer/{moment}/{name}"] = value
        return tensors

    def restore(self, tensors: Mapping[str, torch.Tensor], scaler: dict[str, Any]) -> None:
        """Take over a saved state.

        Raises:
            KeyError: A trained weight is not in it.
            ValueError: A tensor's shape is not the weight's.
        """
        moments: dict[str, dict[str, torch.Tensor]] = {name: {} for name in self.parameters}
        for key, tensor in tensors.items():
            kind, _, rest = key.partition("/")
            if kind == "optimizer":
                moment, _, name = rest.partition("/")
                moments[name][moment] = tensor
        for name, parameter in self.parameters.items():
            saved = tensors[f"weights/{name}"]
            if saved.shape != parameter.shape:
                raise ValueError(f"{name} has shape {tuple(saved.shape)}")
            parameter.data.copy_(saved)
            if moments[name]:
                self.optimizer.state[parameter] = {
                    # The step count stays on the CPU, as AdamW itself keeps it.
                    moment: value if moment == "step" else value.to(parameter.device)
                    for moment, value in moments[name].items()
                }
        self.history.restore(tensors["history"])
        if scaler:
            self.scaler.load_state_dict(scaler)


class Checkpoints:
    """The checkpoints of one run.

    Args:
        request: Says where they go.
        store: Keeps them.
        identity: What a state must agree in to be resumed, by name, as plain JSON.
        versions: Of the libraries that compute.
        write_weights: Writes the weights in their published form to a path, given the steps made.
        emit: Takes the events.
    """

    def __init__(
        self,
        request: TrainerRequest,
        store: Store,
        identity: dict[str, object],
        versions: dict[str, str],
        write_weights: Callable[[Path, int], None],
        emit: Emit,
    ) -> None:
        self._request = request
        self._store = store
        self._identity = identity
        self._versions = versions
        self._write_weights = write_weights
        self._emit = emit
        self._scratch = Path(request.scratch_dir)

    def save(self, state: TrainingState) -> None:
        """Write a checkpoint, then tell of it."""
        step = state.history.steps
        prefix = checkpoint_prefix(self._request.job_id, step, self._request.attempt)
        self._scratch.mkdir(parents=True, exist_ok=True)
        state_path = self._scratch / STATE_FILE
        metadata = {
            "format": _FORMAT,
            "identity": json.dumps(self._identity, sort_keys=True),
            "scaler": json.dumps(state.scaler.state_dict(), sort_keys=True),
            "step": str(step),
            "versions": json.dumps(self._versions, sort_keys=True),
        }
        write_safetensors(state_path, state.tensors(), metadata)
        state_key = f"{prefix}/{STATE_FILE}"
        self._store.put(state_key, state_path)
        state_path.unlink()
        weights_path = self._scratch / f"{self._request.name}.safetensors"
        self._write_weights(weights_path, step)
        weights = self._store.put_artifact(f"{prefix}/{weights_path.name}", weights_path)
        weights_path.unlink()
        saved = CheckpointSaved(step=step, state_key=state_key, weights=weights)
        self._emit(saved)

    def resume(self, state: TrainingState, key: str) -> dict[str, str]:
        """Take over a saved state.

        Returns:
            The versions of the libraries that computed it.

        Raises:
            DamagedFileError: The file is not whole.
            ForeignStateError: It is of another run.
        """
        self._scratch.mkdir(parents=True, exist_ok=True)
        path = self._scratch / f"resumed-{STATE_FILE}"
        path.write_bytes(self._store.get(key))
        try:
            metadata, tensors = _read(path)
            self._check_identity(key, json.loads(metadata["identity"]))
            state.restore(tensors, json.loads(metadata["scaler"]))
            if state.history.steps != int(metadata["step"]):
                raise ValueError("its history and its step differ")
            versions: dict[str, str] = json.loads(metadata["versions"])
        except (SafetensorError, KeyError, ValueError, TypeError, IndexError) as error:
            problem = str(error).partition("\n")[0]
            raise DamagedFileError("the training state", key, problem, _REMEDY) from error
        finally:
            path.unlink()
        return versions

    def _check_identity(self, key: str, saved: dict[str, object]) -> None:
        names = sorted({*saved, *self._identity})
        # Through JSON, as the saved one went.
        own = json.loads(json.dumps(self._identity))
        differs = [name for name in names if saved.get(name) != own.get(name)]
        if differs:
            raise ForeignStateError(key, differs)


def all_finite(parameters: Mapping[str, torch.nn.Parameter]) -> bool:
    """Whether every trained weight is a number."""
    sums = torch.stack([parameter.detach().abs().sum() for parameter in parameters.values()])
    return math.isfinite(sums.sum().item())


def _read(path: Path) -> tuple[dict[str, str], dict[str, torch.Tensor]]:
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
        if metadata.get("format") != _FORMAT:
            raise ValueError("it is no training state of this version")
        return metadata, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
