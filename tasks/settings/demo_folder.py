"""The files in the folder of ``TRAINING_DEMO_DIR``, which ``up`` makes and the console reads."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class DemoFolder:
    """The demo's folder.

    Attributes:
        path: The folder.
    """

    path: Path

    @property
    def images(self) -> Path:
        """The folder of the images and their captions."""
        return self.path / "images"

    @property
    def archive(self) -> Path:
        """The same files as an archive."""
        return self.path / "images.zip"

    @property
    def job(self) -> Path:
        """The job file, which is written last."""
        return self.path / "job.yaml"
