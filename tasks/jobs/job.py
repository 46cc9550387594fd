"""``TrainingJob``: one job, as a person, a backend or a preset describes it."""

import json
import re
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from routing.engines import DIFFUSERS, INVOKE, Engine
from routing.estimate import PUBLISHED, MemoryModel
from routing.policy import DoesNotFitError, Route, route
from routing.requirements import TrainingType
from tasks.errors import DoesNotFitJobError, InvalidJobError, Problem
from tasks.jobs import invoke_limits
from tasks.jobs.flux_lora import FluxLoraConfig
from tasks.jobs.presets import UnknownPresetError, with_preset
from tasks.jobs.sdxl import SdxlFinetuneConfig, SdxlLoraConfig, SdxlTextualInversionConfig
from tasks.strict_model import StrictModel

# Job ids and names become parts of store keys and file names.
_SAFE = r"^[A-Za-z0-9][A-Za-z0-9_-]*(\.[A-Za-z0-9_-]+)*$"
SafeName = Annotated[str, Field(pattern=_SAFE, max_length=100)]

TrainingConfig = Annotated[
    SdxlLoraConfig | SdxlTextualInversionConfig | SdxlFinetuneConfig | FluxLoraConfig,
    Field(discriminator="type"),
]


class TrainingJob(StrictModel):
    """A training job."""

    schema_version: Literal[1] = 1
    """The version of this description."""

    id: SafeName | None = None
    """The job's id. Submitting the same id twice gives one job. Null: one is made at submit."""

    name: SafeName = "lora"
    """What the published file is called."""

    preset: str | None = None
    """A preset whose values stand where ``training`` has none."""

    tenant: SafeName = "default"
    """Whose job it is. Tenants get fair shares of the fleet."""

    priority: Annotated[int, Field(ge=0, le=9, strict=True)] = 0
    """Among its tenant's waiting jobs: 9 goes first."""

    engine: Engine = DIFFUSERS
    """What trains it. ``diffusers`` is this package's own; ``invoke-training`` is that library, on
    the workers that have it: see docs/guides/invoke-training.md."""

    training: TrainingConfig
    """What to train, by its ``type``."""

    def warnings(self) -> list[str]:
        """What runs as described and is likely not what its author wants."""
        of_engine = invoke_limits.warnings_of(self.training) if self.engine == INVOKE else []
        return [*self.training.warnings(), *of_engine]

    def route(self, constants: MemoryModel = PUBLISHED) -> Route:
        """The class and queues of this job.

        Decided once, by the process that records the job, and kept in the record with the
        estimate: whatever calibration other processes have does not change it any more.

        Args:
            constants: The recording process's, from its TRAINING_CALIBRATION.

        Raises:
            DoesNotFitJobError: No GPU memory class holds it.
        """
        estimate = self.training.estimate(constants)
        try:
            return route(TrainingType(self.training.type), estimate, self.engine)
        except DoesNotFitError as error:
            parts = ", ".join(f"{k} {v:.1f}" for k, v in estimate.parts().items())
            raise DoesNotFitJobError(
                f"{error} (GiB: {parts}); set gradient_checkpointing, cache_text_encoder_outputs, "
                "a smaller train_batch_size or a smaller resolution"
            ) from error


def _engine_faults(job: TrainingJob) -> list[Problem]:
    return invoke_limits.problems_of(job.training) if job.engine == INVOKE else []


def parse_job(document: Any) -> TrainingJob:
    """The job that a document describes, its preset applied.

    Args:
        document: A mapping, as read from JSON or YAML. It is not changed.

    Raises:
        InvalidJobError: With every fault of the document.
    """
    if not isinstance(document, dict):
        raise InvalidJobError([Problem("", "a job is a mapping with the key 'training'")])
    problems = []
    try:
        document = with_preset(document)
    except UnknownPresetError as error:
        problems.append(Problem("preset", str(error)))
    except RecursionError as error:
        raise InvalidJobError([Problem("", "a job is not nested this deeply")]) from error
    known = _check_type(document)
    if known is not None:
        raise InvalidJobError([*problems, known])
    try:
        # Through JSON text, so that only what a message can carry is accepted, and in its types.
        job = TrainingJob.model_validate_json(json.dumps(document, default=str))
    except ValidationError as error:
        raise InvalidJobError([*problems, *problems_of(error)]) from error
    except RecursionError as error:
        raise InvalidJobError(
            [*problems, Problem("", "a job is not nested this deeply")]
        ) from error
    except (TypeError, ValueError) as error:  # keys that are no text, a mapping inside itself
        raise InvalidJobError([*problems, Problem("", f"is no JSON: {error}")]) from error
    problems += _engine_faults(job)
    if problems:
        raise InvalidJobError(problems)
    return job


def problems_of(error: ValidationError) -> list[Problem]:
    """Every fault that pydantic found, by the path a person would write."""
    by_path: dict[str, list[dict[str, Any]]] = {}
    for details in map(dict, error.errors(include_url=False)):
        by_path.setdefault(_path(details), []).append(details)
    problems = []
    for path, found in by_path.items():
        # A field of two forms is told of for both; where one form went beyond its type, that is it.
        further = [d for d in found if d["type"] not in ("int_type", "tuple_type")]
        told_within = any(other.startswith(f"{path}.") for other in by_path)
        problems += [Problem(path, _problem(d)) for d in further or ([] if told_within else found)]
    return problems


def _check_type(document: dict[str, Any]) -> Problem | None:
    training = document.get("training")
    if not isinstance(training, dict):
        return Problem("training", "is missing; it holds the training type and its options")
    given = training.get("type")
    if given in list(TrainingType):
        return None
    types = ", ".join(TrainingType)
    return Problem("training.type", f"{given!r} is no training type; the types are {types}")


# The names of union branches appear in pydantic's paths, not in a person's document.
_BRANCH = re.compile(
    r"^([A-Z][A-Z_]+|AdamW|Prodigy|Adafactor|(constrained-)?int|tuple\[.*|\[key\])$"
)

# What a pattern asks for, in words.
_PATTERNS = {
    _SAFE: "takes letters, digits, '-' and '_', and single dots between them, and begins with a "
    "letter or digit"
}

_NO_BRANCH = ("union_tag_invalid", "union_tag_not_found")


def _path(details: dict[str, Any]) -> str:
    *folders, last = map(str, details["loc"] or ("",))
    if details["type"] in _NO_BRANCH:
        # Told of the whole, though it is the field that selects a branch.
        folders, last = [*folders, last], details["ctx"]["discriminator"].strip("'")
    # An option that a person made up may be spelled like a branch.
    is_theirs = details["type"] == "extra_forbidden" or not _BRANCH.match(last)
    return ".".join([part for part in folders if not _BRANCH.match(part)] + [last] * is_theirs)


def _problem(details: dict[str, Any]) -> str:
    kind, message = details["type"], str(details["msg"])
    if kind == "extra_forbidden":
        return "is no option; check its spelling"
    if kind in ("missing", "union_tag_not_found"):
        return "is missing"
    if kind == "union_tag_invalid":
        return f"{details['ctx']['tag']!r} is none of {details['ctx']['expected_tags']}"
    if kind == "string_pattern_mismatch":
        message = _PATTERNS.get(details["ctx"]["pattern"], message)
    message = message.removeprefix("Value error, ")
    if kind in ("value_error", "json_invalid") or isinstance(details["input"], dict | list):
        return message
    return f"{message} (got {details['input']!r})"
