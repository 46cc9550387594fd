"""The messages that workers take: the form of each field that kombu, Celery or a task reads.

Celery trusts its senders: a header of another type ends the worker, ``compression`` takes
gigabytes, an ``eta`` far ahead is held for ever, and ``errbacks`` make the worker send any task to
any queue. So a message is checked whole before Celery gets it. Senders in other languages pass:
fields that nothing here reads may have any value.
"""

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Literal, Self

from celery.app.task import Context
from celery.utils.time import maybe_iso8601, maybe_make_aware
from kombu.transport.virtual.base import Base64
from kombu.utils.json import dumps, loads
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    TypeAdapter,
    ValidationError,
    model_validator,
)

from routing.queues import CPU_QUEUE, ENGINE_QUEUES, GPU_QUEUES, stage_queue
from tasks.contract import CAPTION, STAGES, SUBMIT, SUBMIT_QUEUE, task_name
from tasks.jobs.document import DocumentError, refuse_repeated_keys
from tasks.jobs.job import SafeName

MAX_MESSAGE_BYTES = 2 * 2**20
"""A job document of 1 MiB, in base64 and with its envelope; a larger document that still fits gets
its own error."""
_GPU = "gpu"
_GPU_QUEUES = frozenset({*GPU_QUEUES, *ENGINE_QUEUES})
_FIELD = re.compile(r"[a-z0-9_-]{1,40}")
_MAX_ETA = timedelta(hours=1)
_MAX_EXPIRY = timedelta(days=365)

SUBMIT_QUEUES = frozenset({SUBMIT_QUEUE, CPU_QUEUE})
"""The queues of submissions."""

_TaskName = Literal[
    "training.submit",
    "training.prepare",
    "training.cache",
    "training.train",
    "training.publish",
    "training.caption",
]
_Id = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.:@-]{1,200}$")]
_Text = Annotated[str, StringConstraints(max_length=4096)]
_NoArguments = Annotated[dict[str, Any], Field(max_length=0)]
_Nothing = Annotated[list[Any], Field(max_length=0)] | None
_Count = Annotated[int, Field(ge=0, le=1_000_000)]
_Seconds = Annotated[float, Field(gt=0, le=10**7)]


def _is_within(limit: timedelta) -> AfterValidator:
    """Return the check of a time, which Celery must be able to compute with."""

    def check(text: str) -> str:
        try:
            at = maybe_make_aware(maybe_iso8601(text), UTC).astimezone(UTC)
        except Exception as error:
            raise ValueError("is not a time of ISO 8601") from error
        if not datetime(2000, 1, 1, tzinfo=UTC) < at < datetime.now(UTC) + limit:
            raise ValueError("is too far away")
        return text

    return AfterValidator(check)


class _Part(BaseModel):
    """A part of a message that ignores unknown fields."""

    model_config = ConfigDict(strict=True)


class _ClosedPart(BaseModel):
    """A part of a message all of whose fields Celery uses."""

    model_config = ConfigDict(strict=True, extra="forbid")


class _Headers(_Part):
    """Celery makes each header an attribute of the task's request, whatever its name."""

    model_config = ConfigDict(extra="allow")

    task: _TaskName
    id: _Id
    root_id: _Id | None = None
    parent_id: _Id | None = None
    group: _Id | None = None
    group_index: _Count | None = None
    shadow: None = None
    eta: Annotated[str, _is_within(_MAX_ETA)] | None = None
    expires: Annotated[str, _is_within(_MAX_EXPIRY)] | None = None
    retries: _Count = 0
    timelimit: tuple[_Seconds | None, _Seconds | None] | None = None
    argsrepr: _Text | None = None
    kwargsrepr: _Text | None = None
    origin: _Text | None = None
    ignore_result: bool | None = None
    replaced_task_nesting: _Count | None = None
    stamped_headers: list[_Text] | None = None
    stamps: dict[str, _Text | list[_Text]] | None = None
    headers: dict[str, _Text | int | float | None] | None = None
    training_version: _Count | None = None
    redelivered: bool = False

    @model_validator(mode="after")
    def _no_other_attributes(self) -> Self:
        if any(hasattr(Context, name) or name == "compression" for name in self.model_extra or {}):
            raise ValueError("a header has the name of an attribute of Celery's requests")
        return self


class _Properties(_Part):
    correlation_id: _Text | None = None
    reply_to: _Text | None = None
    priority: Annotated[int, Field(ge=0, le=255)] | None = None
    body_encoding: Literal["base64"] | None = None
    deliveries: _Count = 0
    attempt: _Text | None = None


class _Envelope(_Part):
    body: str
    content_type: Literal["application/json"] = Field(alias="content-type")
    content_encoding: Annotated[
        Literal["utf-8"], BeforeValidator(lambda name: str(name).lower())
    ] = Field(alias="content-encoding")
    headers: _Headers
    properties: _Properties


class _Options(_ClosedPart):
    queue: str
    headers: dict[str, _Text | int | float | None] | None = None
    task_id: _Id | None = None
    root_id: _Id | None = None
    parent_id: _Id | None = None
    reply_to: _Text | None = None
    priority: _Count | None = None


class _NextStage(_ClosedPart):
    """A signature in a chain, from which the worker makes a message."""

    task: _TaskName
    args: tuple[SafeName]
    kwargs: _NoArguments
    options: _Options
    subtask_type: None = None
    immutable: bool


class _Embed(_ClosedPart):
    """What the worker sends after the task: the job's next stages and nothing else."""

    callbacks: _Nothing = None
    errbacks: _Nothing = None
    chord: None = None
    chain: list[_NextStage] | None = None


_SUBMIT_BODY = TypeAdapter(tuple[list[Any], dict[str, Any], _Embed | None])
_STAGE_BODY = TypeAdapter(tuple[tuple[SafeName], _NoArguments, _Embed | None])


@dataclass(frozen=True)
class TaskMessage:
    """A message that a worker may take.

    Attributes:
        document: The message as kombu reads it.
        job_id: The job whose stage it starts; None in a submission, and for captions.
        stage: The stage.
        deliveries: How often it was delivered before.
        attempt: The job's attempt when these deliveries began to count.
        caption_run: The caption run that it starts.
    """

    document: dict[str, Any]
    job_id: str | None
    stage: str | None
    deliveries: int
    attempt: str | None
    caption_run: str | None = None


def read_message(text: bytes | str, queue: str) -> TaskMessage:
    """Read the text of a message in a queue.

    Raises:
        ValueError: It is not one of this fleet. The reason never quotes the message.
    """
    try:
        return _read(text, queue)
    except ValidationError as error:
        raise ValueError(_first_problem(error)) from None
    except DocumentError:
        raise ValueError("has a key more than once in a mapping of its body") from None
    except _RefusedError:
        raise
    except Exception as error:  # noqa: BLE001  # whatever json, base64 and kombu's types raise
        raise ValueError(f"cannot be decoded ({type(error).__name__})") from None


class _RefusedError(ValueError):
    pass


def _read(text: bytes | str, queue: str) -> TaskMessage:
    if len(text) > MAX_MESSAGE_BYTES:
        raise _RefusedError(f"is larger than {MAX_MESSAGE_BYTES} bytes")
    document = loads(text)  # type: ignore[no-untyped-call]
    envelope = _Envelope.model_validate_json(dumps(document))  # type: ignore[no-untyped-call]
    properties, task = envelope.properties, envelope.headers.task
    body: bytes | str = envelope.body
    if properties.body_encoding is not None:
        body = Base64().decode(body)  # type: ignore[no-untyped-call]
    refuse_repeated_keys(body)
    # What Celery will read.
    body = dumps(loads(body))  # type: ignore[no-untyped-call]
    job_id = stage = caption_run = None
    if task == SUBMIT:
        _check_submission(body, queue)
    elif task == CAPTION:
        caption_run = _caption_run_in(body, queue)
    else:
        stage = _stage_of(task)
        (job_id,), _, embed = _STAGE_BODY.validate_json(body)
        if not _may_wait_in(queue, stage):
            raise _RefusedError("is in the queue of another stage")
        if embed is not None and embed.chain:
            _check_chain(stage, job_id, embed.chain)
    deliveries, attempt = properties.deliveries, properties.attempt
    return TaskMessage(document, job_id, stage, deliveries, attempt, caption_run)


def _check_submission(body: str | bytes, queue: str) -> None:
    args, kwargs, embed = _SUBMIT_BODY.validate_json(body)
    if len(args) + len(kwargs) != 1 or not kwargs.keys() <= {"job"}:
        raise _RefusedError("is a submission with other arguments than one job")
    if queue not in SUBMIT_QUEUES:
        raise _RefusedError("is a submission in a queue of stages")
    if embed is not None and embed.chain:
        raise _RefusedError("is a submission with a chain")


def _caption_run_in(body: str | bytes, queue: str) -> str:
    """Return the only argument of a message that asks for captions: the run's id."""
    (run_id,), _, embed = _STAGE_BODY.validate_json(body)
    if queue != CPU_QUEUE and queue not in GPU_QUEUES:
        raise _RefusedError("asks for captions in the queue of another task")
    if embed is not None and embed.chain:
        raise _RefusedError("asks for captions with a chain")
    return run_id


def _check_chain(stage: str, job_id: str, chain: list[_NextStage]) -> None:
    """Check that a chain, whose last signature is the next one, is the rest of the job."""
    next_stages = [_stage_of(signature.task) for signature in reversed(chain)]
    if next_stages != list(STAGES[STAGES.index(stage) + 1 :]):
        raise _RefusedError("has another chain than the stages that follow")
    if any(signature.args != (job_id,) for signature in chain):
        raise _RefusedError("has the chain of another job")
    if not all(_may_wait_in(next_.options.queue, _stage_of(next_.task)) for next_ in chain):
        raise _RefusedError("has a chain to the queue of another stage")


def _may_wait_in(queue: str, stage: str) -> bool:
    if stage_queue(stage, _GPU) == CPU_QUEUE:
        return queue == CPU_QUEUE
    # A cache stage with nothing to compute needs no GPU.
    return queue in _GPU_QUEUES or (stage == "cache" and queue == CPU_QUEUE)


def _stage_of(task: str) -> str:
    return task.removeprefix(task_name(""))


def _first_problem(error: ValidationError) -> str:
    """Return the first problem without any text of the message, such as the name of a field."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    names = ["message" if error.title == _Envelope.__name__ else "body", *map(str, first["loc"])]
    place = ".".join(name if _FIELD.fullmatch(name) else "?" for name in names)
    return f"{place}: {first['msg']}"
