"""What the process does to a run, whatever the tracker."""

from pathlib import Path
from typing import Literal, Protocol

RunEnd = Literal["succeeded", "failed", "interrupted"]


class TrackedRun(Protocol):
    """One run of a tracker."""

    def log(self, step: int, values: dict[str, float]) -> None:
        """Log the values of a step; a step that the run has is left as it is."""

    def log_image(self, step: int, path: Path, caption: str) -> None:
        """Log a validation image."""

    def finish(self, end: RunEnd) -> None:
        """Send what is left, and end the run; an interrupted one is continued later."""
