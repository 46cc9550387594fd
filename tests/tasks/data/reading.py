"""Datasets on this machine, read as a job's are."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tasks.data.listing import Listing
from tasks.data.read_policy import ReadPolicy
from tasks.data.sources import Sources
from tasks.data.tokens import TokenLimit
from tasks.data.validation import Report, check_dataset
from tasks.jobs.datasets import DatasetConfig
from tasks.jobs.pipeline import PipelineConfig

# Folders and files are read where they are.
_LOCAL = Sources(ReadPolicy(), Path("/nowhere/downloads"), Path("/nowhere/scratch"))


def list_local(config: DatasetConfig, **flags: Any) -> Listing:
    return _LOCAL.listing(config, **flags)


def check_local(config: PipelineConfig, limits: Sequence[TokenLimit] = ()) -> Report:
    """With limits given by the test: there is no base model."""
    return check_dataset(config, _LOCAL, limits=lambda _: list(limits))
