"""Draft of a job: the values that a user fills in, their origin, and the resulting job."""

from typing import Any

from console.pages.form.controls import Control, controls
from tasks.jobs.document import write_document
from tasks.jobs.job import TrainingJob
from tasks.jobs.presets import (
    ALIASES,
    SUPPORTED_TRAINING_TYPES,
    merge_training,
    preset,
    preset_names,
)

_BUCKETS = "data_loader.aspect_ratio_buckets"
_RESOLUTION = "data_loader.resolution"
# The configs' defaults are invoke-training's. FLUX leaves the range of its float16, and at its
# learning rate of 4e-4 a LoRA is soon overtrained: the form begins with what the presets have.
_WITHOUT_PRESET: dict[str, Any] = {"weight_dtype": "bfloat16"}
_FLUX_WITHOUT_PRESET = {**_WITHOUT_PRESET, "transformer_learning_rate": 1e-4}


class Draft:
    """Draft of a job.

    A value is the job's own if it differs from the preset's, or without a preset from the default.

    Args:
        training_type: The training type.
        preset_name: The preset; None without one.
    """

    def __init__(self, training_type: str, preset_name: str | None = None) -> None:
        self.training_type = training_type
        self.preset_name = preset_name
        self.name = "lora"
        self.priority: Any = 0
        self.dataset: dict[str, Any] | None = None
        self._own: dict[str, Any] = {}
        # The job's own values merged with the preset's; None after a change.
        self._merged: dict[str, Any] | None = None

    @classmethod
    def of(cls, job: TrainingJob) -> "Draft":
        """Return a draft of an earlier job."""
        known = ALIASES.get(job.preset or "", job.preset)
        draft = cls(job.training.type, known if known in preset_names() else None)
        draft.name, draft.priority = job.name, job.priority
        values = job.training.model_dump(mode="json")
        for control in controls(draft.training_type):
            if control.path.startswith(("data_loader.dataset.", "data_loader.instance_dataset.")):
                continue
            value = _value_at(values, control.path, default=_ABSENT)
            if value is not _ABSENT and not isinstance(value, dict):
                draft.set(control.path, value)
        dataset = _value_at(values, draft.dataset_path)
        there = {control.path: control for control in draft.dataset_controls(dataset["type"])}
        for name, value in list(dataset.items()):
            option = there.get(f"{draft.dataset_path}.{name}")
            if option is not None and not option.required and option.default == value:
                del dataset[name]
        draft.dataset = dataset
        return draft

    @classmethod
    def restored(cls, state: dict[str, Any]) -> "Draft | None":
        """Return the draft with what ``state`` returned; None if this version cannot show it."""
        preset_name = state["preset_name"]
        is_known = state["training_type"] in SUPPORTED_TRAINING_TYPES
        if not is_known or preset_name not in (None, *preset_names()):
            return None
        draft = cls(state["training_type"], preset_name)
        draft.name, draft.priority = state["name"], state["priority"]
        draft.dataset, draft._own = state["dataset"], state["own"]
        return draft

    def state(self) -> dict[str, Any]:
        """Return what a user has filled in, as JSON."""
        return {
            "training_type": self.training_type,
            "preset_name": self.preset_name,
            "name": self.name,
            "priority": self.priority,
            "dataset": self.dataset,
            "own": self._own,
        }

    @property
    def dataset_path(self) -> str:
        """Path of the dataset; of DreamBooth's two, the one of the subject."""
        dreambooth = self._own.get("data_loader.type") == "DREAMBOOTH_SD_DATA_LOADER"
        return "data_loader.instance_dataset" if dreambooth else "data_loader.dataset"

    def choose_type(self, training_type: str, preset_name: str | None) -> None:
        """Choose another training type; drop the values, which belong to the former type."""
        self.training_type, self.preset_name = training_type, preset_name
        self._own.clear()
        self._merged = None

    def choose_preset(self, preset_name: str | None) -> None:
        """Choose another preset; keep the job's own values."""
        self.preset_name, self._merged = preset_name, None
        for path, value in list(self._own.items()):
            self.set(path, value)

    def controls(self) -> list[Control]:
        """Return the controls that apply to the current selections."""
        buckets = self.value(_BUCKETS) is not None
        return [
            control
            for control in controls(self.training_type)
            if self._selected(control) and (buckets or not control.path.startswith(f"{_BUCKETS}."))
        ]

    def dataset_controls(self, kind: str) -> list[Control]:
        """Return the controls of a type of dataset."""
        folder = f"{self.dataset_path}."
        return [
            control
            for control in controls(self.training_type)
            if control.path.startswith(folder)
            and control.only_with.get(f"{folder}type") == kind
            and control.path != f"{folder}type"
        ]

    def selectors(self) -> set[str]:
        """Return the options that decide which other options apply."""
        branches = (control.only_with for control in controls(self.training_type))
        return {_BUCKETS, *(path for branch in branches for path in branch)}

    def control(self, path: str) -> Control | None:
        """Return the control of an option; None if the option does not apply."""
        return next((control for control in self.controls() if control.path == path), None)

    def value(self, path: str) -> Any:
        """Return a value: the job's own, else the preset's, else the default."""
        if self._merged is None:
            self._merged = self._effective(self._own)
        value = _value_at(self._merged, path, default=_ABSENT)
        return self._default(path) if value is _ABSENT else value

    def base(self, path: str) -> Any:
        """Return a value without the job's own: the preset's, else the default."""
        own = {k: v for k, v in self._own.items() if k != path and not k.startswith(f"{path}.")}
        value = _value_at(self._effective(own), path, default=_ABSENT)
        return self._default(path) if value is _ABSENT else value

    def is_own(self, path: str) -> bool:
        """Return whether a value is the job's own."""
        return path in self._own

    def own(self) -> list[str]:
        """Return the paths of the job's own values."""
        return [control.path for control in self.controls() if control.path in self._own]

    def set(self, path: str, value: Any) -> None:
        """Set a value; one that equals the preset's or default is not the job's own."""
        if path == _BUCKETS:
            self._set_buckets(bool(value))
            return
        base = self.base(path)
        # One block is not true.
        if value == base and isinstance(value, bool) == isinstance(base, bool):
            self._own.pop(path, None)
        else:
            self._own[path] = value
        self._merged = None

    def reset(self, path: str) -> None:
        """Reset a value to the preset's or default."""
        for own in [k for k in self._own if k == path or k.startswith(f"{path}.")]:
            del self._own[own]
        self._merged = None

    def set_resolution(self, side: Any) -> None:
        """Set the resolution, and the bucket sizes that suit it."""
        self.set(_RESOLUTION, side)
        if self.value(_BUCKETS) is not None and isinstance(side, int) and side > 0:
            for name, value in self._buckets(side).items():
                self.set(f"{_BUCKETS}.{name}", value)

    def values(self, prefixes: tuple[str, ...]) -> dict[str, Any]:
        """Return the values of the options with one of these prefixes, and the dataset."""
        paths = [control.path for control in self.controls() if control.path.startswith(prefixes)]
        return {**{path: self.value(path) for path in paths}, "dataset": self.dataset}

    def document(self, dataset: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return the job.

        Args:
            dataset: Replaces the draft's dataset.
        """
        training: dict[str, Any] = {}
        for path in self.own():
            set_at(training, path, self._own[path])
        if self.preset_name is None:
            loader = self.value("data_loader.type")
            if self.training_type == "FLUX_LORA":
                loader = "IMAGE_CAPTION_FLUX_DATA_LOADER"
            base = {"type": self.training_type, **self._base(), "data_loader": {"type": loader}}
            training = merge_training(base, training)
        dataset = self.dataset if dataset is None else dataset
        if dataset is not None:
            set_at(training, self.dataset_path, dataset)
        job: dict[str, Any] = {"name": self.name}
        if self.preset_name is not None:
            job["preset"] = self.preset_name
        if self.priority:
            job["priority"] = self.priority
        return {**job, "training": training}

    def as_yaml(self) -> str:
        """Return the job as a file for ``training-worker submit``."""
        return write_document(self.document())

    def _selected(self, control: Control) -> bool:
        return all(self.value(path) == value for path, value in control.only_with.items())

    def _default(self, path: str) -> Any:
        known = [control for control in controls(self.training_type) if control.path == path]
        control = next((candidate for candidate in known if not candidate.only_with), None)
        if control is None:
            control = next((candidate for candidate in known if self._selected(candidate)), None)
        if control is None:
            return None
        if path.endswith("_learning_rate") and self.value("optimizer.optimizer_type") != "AdamW":
            return None  # other optimizers have relative rates; AdamW's default does not suit them
        return control.default

    def _effective(self, own: dict[str, Any]) -> dict[str, Any]:
        over: dict[str, Any] = {}
        for path, value in own.items():
            set_at(over, path, value)
        return merge_training(self._base(), over)

    def _base(self) -> dict[str, Any]:
        """Return the values that a job of this type begins with."""
        if self.preset_name is not None:
            base: dict[str, Any] = preset(self.preset_name)["training"]
            return base
        is_flux = self.training_type == "FLUX_LORA"
        return _FLUX_WITHOUT_PRESET if is_flux else _WITHOUT_PRESET

    def _set_buckets(self, wanted: bool) -> None:
        self.reset(_BUCKETS)
        if wanted == (self.value(_BUCKETS) is not None):
            return
        if not wanted:
            self._own[_BUCKETS], self._merged = None, None
            return
        side = self.value(_RESOLUTION)
        for name, value in self._buckets(side if isinstance(side, int) else 512).items():
            self.set(f"{_BUCKETS}.{name}", value)

    def _buckets(self, side: int) -> dict[str, int]:
        word = {"placeholder_token": ""} if "INVERSION" in self.training_type else {}
        config = SUPPORTED_TRAINING_TYPES[self.training_type](resolution=side, **word)
        buckets: dict[str, int] = config["data_loader"]["aspect_ratio_buckets"]
        # Half of a side is not always divisible by the step.
        step = buckets["divisible_by"]
        return {**buckets, "start_dim": max(step, buckets["start_dim"] // step * step)}


_ABSENT = object()


def _value_at(values: dict[str, Any], path: str, default: Any = None) -> Any:
    """Return the value at a dotted path."""
    value: Any = values
    for part in path.split("."):
        if not isinstance(value, dict) or part not in value:
            return default
        value = value[part]
    return value


def set_at(values: dict[str, Any], path: str, value: Any) -> None:
    """Set the value at a dotted path."""
    *folders, last = path.split(".")
    for part in folders:
        if not isinstance(values.get(part), dict):
            values[part] = {}
        values = values[part]
    values[last] = value
