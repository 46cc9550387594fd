"""Requests to a trainer subprocess, as JSON lines on its standard input, and its exit codes."""

from enum import IntEnum
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from routing.queues import DIFFUSERS, Engine
from tasks.captions.requests import CaptionModel, CaptionStyle
from tasks.events import EncoderDigests
from tasks.jobs.job import TrainingConfig
from tasks.strict_model import StrictModel


class TrainerRequest(StrictModel):
    """One run of the trainer. It answers with events; the last one reports how the run ended."""

    stage: Literal["cache", "train"]
    """``cache`` computes cache entries; ``train`` trains."""

    job_id: str
    start_id: str
    """The id of the start. It is part of every written key, so that two starts never share one."""

    engine: Engine = DIFFUSERS
    """The engine that runs the request."""

    name: str
    """The name of the published file."""

    training: TrainingConfig
    """The resolved config; its seed is set."""

    dataset_key: str
    """The store key of the normalized dataset."""

    store_url: str
    """The store of images, cache entries, checkpoints and results."""

    scratch_dir: str
    """The folder of this run, for files on their way to the store."""

    device: Literal["cpu", "cuda"]
    """``cuda`` is the one GPU that the process is pinned to."""

    encoders: EncoderDigests | None = None
    """``cache``: the digests of the encoders to run; null requests the digests themselves."""

    cache_entries: tuple[str, ...] = ()
    """``cache``: the digests of the entries to compute, text first."""

    cache_index_key: str | None = Field(default=None)
    """``train``: the store key of the job's cache index."""

    resume_state_key: str | None = Field(default=None)
    """``train``: the store key of the state to resume from; null starts at step 0."""

    patches: tuple[str, ...] = ()
    """``train`` with engine ``invoke-training``: the bugs of the library to patch."""

    @property
    def base_model(self) -> tuple[str, ...]:
        """What a trainer keeps loaded for the next request of the same base model."""
        return self.device, self.training.model


class CaptionImage(StrictModel):
    """An image to write a caption for."""

    name: str
    """The file's name in the upload."""

    path: str
    """A small JPEG of the image, which a decoder has made."""

    sha256: str
    """The SHA-256 of the upload's file, in hex."""


class CaptionRequest(StrictModel):
    """Captions to write. The trainer answers with an event for each, and ``CaptionDone``."""

    stage: Literal["caption"] = "caption"

    job_id: str
    """The id of the caption run."""

    model: CaptionModel

    style: CaptionStyle

    images: tuple[CaptionImage, ...]

    store_url: str
    """The store of captions that were written before."""

    device: Literal["cpu", "cuda"]

    limit_gib: float | None
    """The GPU memory that the model may take; null on the CPU."""

    @property
    def base_model(self) -> tuple[str, ...]:
        """What a trainer keeps loaded for the next request of the same model."""
        return self.device, self.model.model


Request = TrainerRequest | CaptionRequest
"""A request to the trainer."""

_REQUEST: TypeAdapter[Request] = TypeAdapter(Annotated[Request, Field(discriminator="stage")])


def parse_request(line: str) -> Request:
    """Return the request of a line of JSON.

    Raises:
        pydantic.ValidationError: The line is not a request.
    """
    return _REQUEST.validate_json(line)


class TrainerExit(IntEnum):
    """The exit code of a trainer process."""

    DONE = 0
    CRASHED = 1
    """An unexpected error; its standard error ends with a traceback."""
    REFUSED = 3
    """It reported the reason in a ``failed`` event; a retry would not help."""
    INTERRUPTED = 4
    """It saved a checkpoint and stopped on request."""
