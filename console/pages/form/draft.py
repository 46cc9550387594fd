"""A job that is being filled in: its values, where they come from, and the job that they make."""

from typing import Any

import yaml

from console.pages.form.controls import Control, controls
from tasks.jobs.job import TrainingJob
from tasks.jobs.presets import ALIASES, SUPPORTED_TRAINING_TYPES, joined, preset, preset_names

_BUCKETS = "data_loader.aspect_ratio_buckets"
_RESOLUTION = "data_loader.resolution"


class Draft:
    """What a person has filled in so far.

    Only values that differ from the preset's, and without one from the default's, are the job's
    own.

    Args:
        training_type: What to train.
        preset_name: The preset; None for none.
    """

    def __init__(self, training_type: str, preset_name: str | None = None) -> None:
        self.training_type = training_type
        self.preset_name = preset_name
        self.name = "lora"
        self.priority: Any = 0
        self.dataset: dict[str, Any] | None = None
        self._own: dict[str, Any] = {}
        # With the preset's; None once something was changed.
        self._merged: dict[str, Any] | None = None

    @classmethod
    def of(cls, job: TrainingJob) -> "Draft":
        """The draft that makes a job again."""
        known = ALIASES.get(job.preset or "", job.preset)
        draft = cls(job.training.type, known if known in preset_names() else None)
        draft.name, draft.priority = job.name, job.priority
        values = job.training.model_dump(mode="json")
        for control in controls(draft.training_type):
            if control.path.startswith(("data_loader.dataset.", "data_loader.instance_dataset.")):
                continue
            value = _found(values, control.path, default=_NOTHING)
            if value is not _NOTHING and not isinstance(value, dict):
                draft.set(control.path, value)
        dataset = _found(values, draft.dataset_path)
        there = {it.path: it for it in draft.dataset_controls(dataset["type"])}
        for name, value in list(dataset.items()):
            option = there.get(f"{draft.dataset_path}.{name}")
            if option is not None and not option.required and option.default == value:
                del dataset[name]
        draft.dataset = dataset
        return draft

    @property
    def dataset_path(self) -> str:
        """Where the dataset goes: DreamBooth has two, and the first one is of the thing."""
        dreambooth = self._own.get("data_loader.type") == "DREAMBOOTH_SD_DATA_LOADER"
        return "data_loader.instance_dataset" if dreambooth else "data_loader.dataset"

    def choose_type(self, training_type: str, preset_name: str | None) -> None:
        """Train something else: values of the former type are no good for it."""
        self.training_type, self.preset_name = training_type, preset_name
        self._own.clear()
        self._merged = None

    def choose_preset(self, preset_name: str | None) -> None:
        """Take another preset; the job's own values stay."""
        self.preset_name, self._merged = preset_name, None
        for path, value in list(self._own.items()):
            self.set(path, value)

    def controls(self) -> list[Control]:
        """The controls that act with what is selected so far."""
        buckets = self.value(_BUCKETS) is not None
        return [
            it
            for it in controls(self.training_type)
            if self._selected(it) and (buckets or not it.path.startswith(f"{_BUCKETS}."))
        ]

    def dataset_controls(self, kind: str) -> list[Control]:
        """The controls of a kind of dataset."""
        folder = f"{self.dataset_path}."
        return [
            it
            for it in controls(self.training_type)
            if it.path.startswith(folder)
            and it.only_with.get(f"{folder}type") == kind
            and it.path != f"{folder}type"
        ]

    def selectors(self) -> set[str]:
        """The options that decide which others there are."""
        branches = (it.only_with for it in controls(self.training_type))
        return {_BUCKETS, *(path for branch in branches for path in branch)}

    def control(self, path: str) -> Control | None:
        """The control of an option; None where the type has none, or another branch is chosen."""
        return next((it for it in self.controls() if it.path == path), None)

    def value(self, path: str) -> Any:
        """A value: the job's own, else the preset's, else the default."""
        if self._merged is None:
            self._merged = self._effective(self._own)
        found = _found(self._merged, path, default=_NOTHING)
        return self._default(path) if found is _NOTHING else found

    def base(self, path: str) -> Any:
        """What a value would be without the job's own."""
        own = {k: v for k, v in self._own.items() if k != path and not k.startswith(f"{path}.")}
        found = _found(self._effective(own), path, default=_NOTHING)
        return self._default(path) if found is _NOTHING else found

    def is_own(self, path: str) -> bool:
        """Whether the job says it itself."""
        return path in self._own

    def own(self) -> list[str]:
        """The paths of the values that the job says itself."""
        return [it.path for it in self.controls() if it.path in self._own]

    def set(self, path: str, value: Any) -> None:
        """Give a value; one that stands there anyway is not the job's own."""
        if path == _BUCKETS:
            self._set_buckets(bool(value))
            return
        if value == self.base(path):
            self._own.pop(path, None)
        else:
            self._own[path] = value
        self._merged = None

    def reset(self, path: str) -> None:
        """Take back the job's own value."""
        for own in [k for k in self._own if k == path or k.startswith(f"{path}.")]:
            del self._own[own]
        self._merged = None

    def set_resolution(self, side: Any) -> None:
        """Give the resolution, and sizes of buckets that go with it."""
        self.set(_RESOLUTION, side)
        if self.value(_BUCKETS) is not None and isinstance(side, int) and side > 0:
            for name, value in self._buckets(side).items():
                self.set(f"{_BUCKETS}.{name}", value)

    def values(self, beginnings: tuple[str, ...]) -> dict[str, Any]:
        """The values of the options whose paths begin so, and the dataset."""
        paths = [it.path for it in self.controls() if it.path.startswith(beginnings)]
        return {**{path: self.value(path) for path in paths}, "dataset": self.dataset}

    def document(self) -> dict[str, Any]:
        """The job."""
        training: dict[str, Any] = {}
        if self.preset_name is None:
            training["type"] = self.training_type
            if self.training_type == "FLUX_LORA":
                training["data_loader"] = {"type": "IMAGE_CAPTION_FLUX_DATA_LOADER"}
            else:
                training["data_loader"] = {"type": self.value("data_loader.type")}
        for path in self.own():
            _put(training, path, self._own[path])
        if self.dataset is not None:
            _put(training, self.dataset_path, self.dataset)
        job: dict[str, Any] = {"name": self.name}
        if self.preset_name is not None:
            job["preset"] = self.preset_name
        if self.priority:
            job["priority"] = self.priority
        return {**job, "training": training}

    def as_yaml(self) -> str:
        """The job as a file for ``training-worker submit``."""
        return yaml.safe_dump(self.document(), sort_keys=False, allow_unicode=True)

    def _selected(self, control: Control) -> bool:
        return all(self.value(path) == value for path, value in control.only_with.items())

    def _default(self, path: str) -> Any:
        known = [it for it in controls(self.training_type) if it.path == path]
        found = next((it for it in known if not it.only_with), None)
        if found is None:
            found = next((it for it in known if self._selected(it)), None)
        if found is None:
            return None
        if path.endswith("_learning_rate") and self.value("optimizer.optimizer_type") != "AdamW":
            return None  # theirs are relative: no default of AdamW's holds
        return found.default

    def _effective(self, own: dict[str, Any]) -> dict[str, Any]:
        base: dict[str, Any] = {}
        if self.preset_name is not None:
            base = preset(self.preset_name)["training"]
        over: dict[str, Any] = {}
        for path, value in own.items():
            _put(over, path, value)
        return joined(base, over)

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
        # Half of a side is not always on the step.
        step = buckets["divisible_by"]
        return {**buckets, "start_dim": max(step, buckets["start_dim"] // step * step)}


_NOTHING = object()


def _found(values: dict[str, Any], path: str, default: Any = None) -> Any:
    """What stands at a dotted path."""
    found: Any = values
    for part in path.split("."):
        if not isinstance(found, dict) or part not in found:
            return default
        found = found[part]
    return found


def _put(values: dict[str, Any], path: str, value: Any) -> None:
    """Set what stands at a dotted path."""
    *folders, last = path.split(".")
    for part in folders:
        if not isinstance(values.get(part), dict):
            values[part] = {}
        values = values[part]
    values[last] = value
