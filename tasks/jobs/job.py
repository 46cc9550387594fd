"""``TrainingJob``: the description of one job, and its parser."""

import json
import re
from dataclasses import replace
from functools import cache
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from routing.estimate import PUBLISHED, MemoryModel
from routing.policy import AUTO_SHARE, DoesNotFitError, Route, TrainingType, route
from routing.queues import DIFFUSERS, INVOKE, Engine
from tasks.errors import DoesNotFitJobError, InvalidJobError, Problem
from tasks.escaping import listed, quoted, shortened
from tasks.jobs import invoke
from tasks.jobs.destinations import MAX_DESTINATIONS, Destination
from tasks.jobs.document import DocumentError, plain_document
from tasks.jobs.field_metadata import Location, PlainText
from tasks.jobs.flux_lora import FluxLoraConfig
from tasks.jobs.pipeline import PICKLE_ENDINGS
from tasks.jobs.presets import UnknownPresetError, preset, with_preset
from tasks.jobs.problems import validate
from tasks.jobs.sdxl import SdxlFinetuneConfig, SdxlLoraConfig, SdxlTextualInversionConfig
from tasks.jobs.webhook import JobWebhook
from tasks.strict_model import SAFE_NAME, StrictModel

# Job ids and names become parts of store keys and file names.
SafeName = Annotated[str, Field(pattern=SAFE_NAME, max_length=100), Location.NONE]


_LABEL_TEXT = r"[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?"
_LABEL_NAME = r"[A-Za-z0-9]([A-Za-z0-9._/-]{0,61}[A-Za-z0-9])?"
_MAX_LABELS = 32
_MAX_METADATA_BYTES, _MAX_METADATA_DEPTH = 4096, 8


def _check_labels(labels: dict[str, str]) -> dict[str, str]:
    """Refuse labels that break the rules; names all of them."""
    wrong = [name for name in labels if not re.fullmatch(_LABEL_NAME, name)]
    wrong += [name for name, text in labels.items() if not re.fullmatch(f"({_LABEL_TEXT})?", text)]
    problems = []
    if len(labels) > _MAX_LABELS:
        problems.append(f"has {len(labels)} labels; keep {_MAX_LABELS}")
    if wrong:
        problems.append(
            f"name or text of {listed([shortened(name) for name in wrong])} is not up to 63 "
            "letters, digits and - _ . (in names also /) that begin and end with a letter or digit"
        )
    if problems:
        raise ValueError("; ".join(problems))
    return labels


def _check_metadata(metadata: dict[str, Any]) -> dict[str, Any]:
    """Refuse metadata that is too large or too deep to return with every view of the job."""
    text = json.dumps(metadata, ensure_ascii=False, allow_nan=False)
    size = len(text.encode("utf-8", "surrogatepass"))
    if size > _MAX_METADATA_BYTES:
        raise ValueError(f"has {size:,} bytes as JSON; the maximum is {_MAX_METADATA_BYTES:,}")
    level: list[Any] = [metadata]
    for _ in range(_MAX_METADATA_DEPTH):
        level = [each for value in level for each in _parts_of(value)]
    if level:
        raise ValueError(f"has more than {_MAX_METADATA_DEPTH} levels")
    return metadata


def _parts_of(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return list(value.values())
    return list(value) if isinstance(value, list) else []


Labels = Annotated[dict[str, str], AfterValidator(_check_labels), Location.NONE]
Metadata = Annotated[dict[str, Any], AfterValidator(_check_metadata), Location.NONE]


def _without_ending(name: str) -> str:
    """Refuse the name of a file: the ending would be there twice."""
    stem, dot, ending = name.rpartition(".")
    if f"{dot}{ending.lower()}" in (".safetensors", *PICKLE_ENDINGS):
        raise ValueError(f"{quoted(name)} is a file's name; write {stem}, without the ending")
    return name


TrainingConfig = Annotated[
    SdxlLoraConfig | SdxlTextualInversionConfig | SdxlFinetuneConfig | FluxLoraConfig,
    Field(discriminator="type"),
]
_CONFIGS = (SdxlLoraConfig, SdxlTextualInversionConfig, SdxlFinetuneConfig, FluxLoraConfig)


class TrainingJob(StrictModel):
    """A training job."""

    schema_version: Literal[1] = 1
    """The version of this description."""

    id: SafeName | None = None
    """The job's id. Submitting the same id twice gives one job. Null: submit generates one."""

    name: Annotated[SafeName, AfterValidator(_without_ending)] = "lora"
    """The name of the published file, without its ending."""

    preset: PlainText | None = None
    """The preset whose values apply where ``training`` has none."""

    tenant: SafeName = "default"
    """The owner of the job. Tenants get fair shares of the fleet."""

    priority: Annotated[int, Field(ge=0, le=9, strict=True)] = 0
    """The priority among the tenant's waiting jobs: 9 is dispatched first."""

    labels: Labels = Field(default_factory=dict)
    """Up to 32 names with short texts, such as `customer: "17"`; lists of jobs can be filtered by
    them. They are as in Kubernetes: up to 63 letters, digits, `-`, `_` and `.`, in names `/`."""

    metadata: Metadata = Field(default_factory=dict)
    """Any JSON object of up to 4,096 bytes and 8 levels, which is returned with the job."""

    engine: Engine = DIFFUSERS
    """The program that trains. ``diffusers`` is this package's own; ``invoke-training`` is that
    library, on the workers that have it: see docs/guides/invoke-training.md."""

    publish_to: Annotated[tuple[Destination, ...], Field(max_length=MAX_DESTINATIONS)] = ()
    """Where the results are copied after they are in the fleet's store."""

    webhook: JobWebhook | None = None
    """Where the job's events are delivered. Null: nowhere. The tenant needs a webhook secret."""

    training: TrainingConfig
    """The training run, by its ``type``."""

    def warnings(self) -> list[str]:
        """Return a sentence for each option that is valid and likely not what its author wants.

        The job's preset chose its values on purpose: what these alone give rise to is left out.
        """
        of_engine = invoke.warnings_of(self.training) if self.engine == INVOKE else []
        on_purpose = () if self.preset is None else _warnings_of_preset(self.preset)
        found = [it for it in self.training.warnings() if it not in on_purpose]
        return [*found, *of_engine]

    def route(self, constants: MemoryModel = PUBLISHED) -> Route:
        """Return the class and queues of this job, and the blocks that ``auto`` recomputes.

        The process that records the job decides them once, and keeps them in the record with the
        estimate: the calibration of other processes does not change them.

        Args:
            constants: The memory model of the recording process, from its TRAINING_CALIBRATION.

        Raises:
            DoesNotFitJobError: No GPU memory class is large enough.
        """
        estimate = self.training.estimate(constants)
        try:
            chosen = route(TrainingType(self.training.type), estimate, self.engine)
        except DoesNotFitError as error:
            parts = ", ".join(f"{k} {v:.1f}" for k, v in estimate.parts().items())
            raise DoesNotFitJobError(
                f"{error} (GiB: {parts})", f"set {' or '.join(self.training.savings())}"
            ) from error
        training = self.training.fitted(AUTO_SHARE * chosen.memory_class.floor_gib, constants)
        blocks, reason = training.checkpointed_blocks, chosen.reason
        if training is not self.training:
            estimate = training.estimate(constants)
            reason = (
                f"with every block recomputed, {reason}; auto recomputes {blocks} of "
                f"{training.blocks} there, which takes {estimate.needed_gib:.1f} GiB"
            )
        return replace(
            chosen,
            estimate=estimate,
            reason=reason,
            checkpointed_blocks=blocks,
            blocks=training.blocks,
        )


def parse_job(document: Any) -> TrainingJob:
    """Return the job that a document describes, its preset applied.

    Args:
        document: A mapping, as read from JSON or YAML. It is not changed.

    Raises:
        InvalidJobError: The document is no valid job; the error lists its problems.
    """
    try:
        document = plain_document(document)
        if not isinstance(document, dict):
            raise DocumentError("is a mapping with the key 'training'")
    except DocumentError as error:
        raise InvalidJobError([Problem("", f"a job's document {error}")]) from error
    document, problems = _completed(document)
    job, found = validate(document, TrainingJob)
    problems += _further(document, problems, found)
    if job is None:
        raise InvalidJobError([*_differs_from_preset(document), *problems])
    if job.engine == INVOKE:
        problems += invoke.problems_of(job.training)
    if problems:
        raise InvalidJobError(problems)
    return job


# Values for the required options that presets leave open.
_DATASET = {"type": "IMAGE_DIR_DATASET", "dataset_dir": "images"}
_CAPTIONED = {"type": "IMAGE_CAPTION_DIR_DATASET", "dataset_dir": "images"}
_TOKEN = {
    "placeholder_token": "<word>",
    "initializer_token": "word",
    "data_loader": {"dataset": _DATASET, "caption_preset": "object"},
}


@cache
def preset_job(name: str) -> TrainingJob:
    """Return a job of a preset, with values for the options that it leaves open.

    Raises:
        UnknownPresetError: No preset has this name.
    """
    required: dict[str, Any] = {"data_loader": {"dataset": _CAPTIONED}}
    if preset(name)["training"]["type"] == TrainingType.SDXL_TEXTUAL_INVERSION:
        required = _TOKEN
    return parse_job({"preset": name, "training": required})


@cache
def _warnings_of_preset(name: str) -> frozenset[str]:
    """Return the warnings about a preset's values, but for those on who reads the result."""
    training = preset_job(name).training
    return frozenset(training.warnings()) - frozenset(training.reader_warnings())


def _completed(document: dict[str, Any]) -> tuple[dict[str, Any], list[Problem]]:
    """Return a document with a ``training`` mapping and its preset, and what is wrong with these.

    An unknown preset is replaced by the one that is likely meant, so that the rest can be checked.
    """
    document, problems = _with_training(document)
    try:
        return with_preset(document), problems
    except UnknownPresetError as error:
        problems.append(Problem("preset", str(error)))
        return with_preset({**document, "preset": error.similar}), problems


def _with_training(document: dict[str, Any]) -> tuple[dict[str, Any], list[Problem]]:
    """Return a document with a ``training`` mapping, and what is wrong with the given one."""
    training = document.get("training")
    if isinstance(training, dict) or (training is None and document.get("preset") is not None):
        return {**document, "training": training or {}}, []
    if training is not None:
        problem = Problem("training", "must be a mapping: the training type and its options")
        return {**document, "training": {}}, [problem]
    known = {name for config in _CONFIGS for name in config.model_fields}
    options = {name: value for name, value in document.items() if name in known}
    rest = {name: value for name, value in document.items() if name not in options}
    message = "is missing; it contains the training type and its options"
    if options:
        message = f"is missing; put it above {listed(list(options))}, and indent these"
    return {**rest, "training": options}, [Problem("training", message, code="missing")]


def _differs_from_preset(document: dict[str, Any]) -> list[Problem]:
    """Explain the problems of a completed document whose preset is for another training type."""
    kind, name = document["training"].get("type"), document.get("preset")
    own = kind if name is None else preset(name)["training"]["type"]
    if kind == own or kind not in tuple(TrainingType):
        return []
    message = f"is {kind}, and the preset {name} is for {own}; choose another preset, or none"
    return [Problem("training.type", message)]


def _further(document: dict[str, Any], known: list[Problem], found: list[Problem]) -> list[Problem]:
    """Return the problems found in a completed document that do not follow from known ones."""
    locations = {problem.location for problem in known}
    # What an unknown preset has, and what a part that was left out needs, is not missing.
    is_whole = "preset" not in locations and bool(document["training"])
    return [it for it in found if it.location not in locations and (is_whole or not it.missing)]
