"""What a stage needs from the worker it runs in. ``worker/`` fills it in."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from tasks.cache_registry import CacheRegistry
from tasks.data.access import Access
from tasks.events import CacheDone, Event, TrainDone
from tasks.requests import TrainerRequest
from tasks.state import JobState
from tasks.store import Store

Device = Literal["cpu", "cuda"]


class Trainer(Protocol):
    """Runs trainer requests, one at a time, in a process of its own."""

    def run(
        self,
        request: TrainerRequest,
        *,
        on_event: Callable[[Event], None],
        stop_requested: Callable[[], bool],
    ) -> CacheDone | TrainDone:
        """Run a request to its end.

        Args:
            request: What to do.
            on_event: Called in this thread with each event as it comes. An error it raises ends
                the trainer and is raised on.
            stop_requested: Asked at least once a second; True makes the trainer save a checkpoint
                and stop.

        Returns:
            The trainer's answer.

        Raises:
            TrainerInterrupted: It stopped because it was asked to.
            TrainerError: It failed; the message holds its own words or the end of its output.
        """
        ...

    def close(self) -> None:
        """End what is kept for later requests."""
        ...


class TrainerInterrupted(Exception):  # noqa: N818 - an outcome, not an error
    """The trainer stopped as it was asked to; its last checkpoint was told as an event."""


@dataclass(frozen=True)
class Runtime:
    """One worker process's means.

    Attributes:
        worker: The worker's name, for people.
        device: What its trainers compute on.
    """

    state: JobState
    cache: CacheRegistry
    store: Store
    trainer: Trainer
    access: Access
    downloads_dir: Path
    scratch_dir: Path
    worker: str
    device: Device
