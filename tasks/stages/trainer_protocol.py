"""What a trainer subprocess is asked to do: one JSON line on its standard input."""

from enum import IntEnum
from typing import Literal

from pydantic import Field

from routing.queues import DIFFUSERS, Engine
from tasks.events import EncoderDigests
from tasks.jobs.job import TrainingConfig
from tasks.strict_model import StrictModel


class TrainerRequest(StrictModel):
    """One run of the trainer. It answers with events, the last one telling how it ended."""

    stage: Literal["cache", "train"]
    """``cache`` makes cache entries; ``train`` trains."""

    job_id: str
    attempt: int
    """The fencing token; part of every key written, so that two starts never share one."""

    engine: Engine = DIFFUSERS
    """What carries it out."""

    name: str
    """What the published file is called."""

    training: TrainingConfig
    """The resolved config, its seed set."""

    dataset_key: str
    """The store key of the normalised dataset."""

    store_url: str
    """Where images, cache entries, checkpoints and results are."""

    scratch_dir: str
    """A folder of this run's own, for files on their way to the store."""

    device: Literal["cpu", "cuda"]
    """``cuda`` is the one GPU the process is pinned to."""

    encoders: EncoderDigests | None = None
    """``cache``: of the encoders whose outputs are wanted; null asks for their digests."""

    cache_entries: tuple[str, ...] = ()
    """``cache``: the digests of the entries to make, text first."""

    cache_index_key: str | None = Field(default=None)
    """``train``: the index that the cache stage left."""

    resume_state_key: str | None = Field(default=None)
    """``train``: the state to go on from; null starts at step 0."""

    patches: tuple[str, ...] = ()
    """``train`` by engine ``invoke-training``: which of its bugs are patched."""

    @property
    def base_model(self) -> tuple[str, ...]:
        """What a trainer that serves another such request has loaded already."""
        return self.device, self.training.model


class TrainerExit(IntEnum):
    """How a trainer process ends."""

    DONE = 0
    CRASHED = 1
    """An error nobody foresaw; the last lines of its standard error tell."""
    REFUSED = 3
    """It said why in a ``failed`` event; trying again would not help."""
    INTERRUPTED = 4
    """It was asked to stop, saved a checkpoint and stopped."""
