"""``TrainingJob``: the description of one job, and its parser."""

import json
import re
from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from routing.estimate import PUBLISHED, MemoryModel
from routing.policy import AUTO_SHARE, DoesNotFitError, Route, TrainingType, route
from routing.queues import DIFFUSERS, INVOKE, Engine
from tasks.errors import DoesNotFitJobError, InvalidJobError, Problem
from tasks.escaping import quoted, shortened
from tasks.jobs import invoke
from tasks.jobs.document import DocumentError, plain_document
from tasks.jobs.field_metadata import Location, PlainText
from tasks.jobs.flux_lora import FluxLoraConfig
from tasks.jobs.presets import UnknownPresetError, with_preset
from tasks.jobs.sdxl import SdxlFinetuneConfig, SdxlLoraConfig, SdxlTextualInversionConfig
from tasks.strict_model import EXACTLY_ONE, StrictModel

# Job ids and names become parts of store keys and file names.
_SAFE = r"^[A-Za-z0-9][A-Za-z0-9_-]*(\.[A-Za-z0-9_-]+)*$"
SafeName = Annotated[str, Field(pattern=_SAFE, max_length=100), Location.NONE]

# The branches of unions, which appear in pydantic's paths and not in the author's document.
_BRANCH = re.compile(
    r"^([A-Z][A-Z_]+|AdamW|Prodigy|Adafactor|(constrained-)?int|tuple\[.*|\[key\])$"
)
# What a pattern requires, in words.
_PATTERNS = {
    _SAFE: "must be letters, digits, '-' and '_', with single dots between them, and begin with a "
    "letter or digit"
}
_NO_BRANCH = ("union_tag_invalid", "union_tag_not_found")
# Errors of values that were not given.
_MISSING = ("missing", "union_tag_not_found", EXACTLY_ONE)

TrainingConfig = Annotated[
    SdxlLoraConfig | SdxlTextualInversionConfig | SdxlFinetuneConfig | FluxLoraConfig,
    Field(discriminator="type"),
]


class TrainingJob(StrictModel):
    """A training job."""

    schema_version: Literal[1] = 1
    """The version of this description."""

    id: SafeName | None = None
    """The job's id. Submitting the same id twice gives one job. Null: submit generates one."""

    name: SafeName = "lora"
    """The name of the published file."""

    preset: PlainText | None = None
    """The preset whose values apply where ``training`` has none."""

    tenant: SafeName = "default"
    """The owner of the job. Tenants get fair shares of the fleet."""

    priority: Annotated[int, Field(ge=0, le=9, strict=True)] = 0
    """The priority among the tenant's waiting jobs: 9 is dispatched first."""

    engine: Engine = DIFFUSERS
    """The program that trains. ``diffusers`` is this package's own; ``invoke-training`` is that
    library, on the workers that have it: see docs/guides/invoke-training.md."""

    training: TrainingConfig
    """The training run, by its ``type``."""

    def warnings(self) -> list[str]:
        """Return a sentence for each option that is valid and likely not what its author wants."""
        of_engine = invoke.warnings_of(self.training) if self.engine == INVOKE else []
        return [*self.training.warnings(), *of_engine]

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
                f"{error} (GiB: {parts}); set gradient_checkpointing, cache_text_encoder_outputs, "
                "a smaller train_batch_size or a smaller resolution"
            ) from error
        training = self.training.fitted(AUTO_SHARE * chosen.memory_class.floor_gib, constants)
        blocks, reason = training.checkpointed_blocks, chosen.reason
        if training is not self.training:
            estimate = training.estimate(constants)
            reason = (
                f"{reason}; with {blocks} of {training.blocks} blocks recomputed it takes "
                f"{estimate.needed_gib:.1f} GiB"
            )
        return replace(chosen, estimate=estimate, reason=reason, checkpointed_blocks=blocks)


def parse_job(document: Any) -> TrainingJob:
    """Return the job that a document describes, its preset applied.

    Args:
        document: A mapping, as read from JSON or YAML. It is not changed.

    Raises:
        InvalidJobError: The document is no valid job; the error lists its problems.
    """
    problems = []
    try:
        document = plain_document(document)
        if not isinstance(document, dict):
            raise DocumentError("is a mapping with the key 'training'")
        document = with_preset(document)
    except DocumentError as error:
        raise InvalidJobError([Problem("", f"a job's document {error}")]) from error
    except UnknownPresetError as error:
        problems.append(Problem("preset", str(error)))
    type_problem = _check_type(document)
    if type_problem is not None:
        raise InvalidJobError([*problems, type_problem])
    try:
        # As JSON text: pydantic accepts only what a message can carry, in its types.
        job = TrainingJob.model_validate_json(json.dumps(document))
    except ValidationError as error:
        raise InvalidJobError([*problems, *problems_of(error)]) from error
    if job.engine == INVOKE:
        problems += invoke.problems_of(job.training)
    if problems:
        raise InvalidJobError(problems)
    return job


def problems_of(error: ValidationError) -> list[Problem]:
    """Return every problem that pydantic found, by the path in the author's document."""
    by_path: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for details in map(dict, error.errors(include_url=False)):
        by_path.setdefault(_path(details), []).append(details)
    folders = {path[:length] for path in by_path for length in range(1, len(path))}
    problems = []
    for path, found in by_path.items():
        # pydantic reports a union of int and tuple once for each branch. The branch that got past
        # its type check is the one that the author meant; a problem inside a tuple says enough.
        meant = [d for d in found if d["type"] not in ("int_type", "tuple_type")]
        if not meant and path not in folders:
            meant = found
        problems += [
            Problem(".".join(path), _message(details), missing=details["type"] in _MISSING)
            for details in meant
        ]
    return problems


def _check_type(document: dict[str, Any]) -> Problem | None:
    training = document.get("training")
    if not isinstance(training, dict):
        message = "is missing; it contains the training type and its options"
        return Problem("training", message, missing=True)
    given = training.get("type")
    if given in list(TrainingType):
        return None
    types = ", ".join(TrainingType)
    message = f"{quoted(given)} is not a training type; the types are {types}"
    return Problem("training.type", message)


def _path(details: dict[str, Any]) -> tuple[str, ...]:
    *folders, last = map(str, details["loc"] or ("",))
    if details["type"] in _NO_BRANCH:
        # pydantic reports the union, though the problem is in the field that selects its branch.
        folders, last = [*folders, last], details["ctx"]["discriminator"].strip("'")
    parts = [part for part in folders if not _BRANCH.match(part)]
    # An unknown option may be spelled like a branch.
    if details["type"] == "extra_forbidden" or not _BRANCH.match(last):
        parts.append(last)
    return tuple(map(shortened, parts))


def _message(details: dict[str, Any]) -> str:
    kind, message = details["type"], str(details["msg"])
    if kind == "extra_forbidden":
        return "is not an option; check its spelling"
    if kind in ("missing", "union_tag_not_found"):
        return "is missing"
    if kind == "union_tag_invalid":
        return f"{quoted(details['ctx']['tag'])} is not one of {details['ctx']['expected_tags']}"
    if kind == "string_pattern_mismatch":
        message = _PATTERNS.get(details["ctx"]["pattern"], message)
    message = message.removeprefix("Value error, ")
    if kind in ("value_error", "json_invalid", EXACTLY_ONE) or isinstance(
        details["input"], dict | list
    ):
        return message
    return f"{message} (got {quoted(details['input'])})"
