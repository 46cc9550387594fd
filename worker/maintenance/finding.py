"""The result of one of ``doctor``'s checks, and how its numbers are printed."""

from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "warning", "error"]


@dataclass(frozen=True)
class Finding:
    """The result of a check.

    Attributes:
        level: ``error`` if jobs cannot run, or could be lost.
        subject: What was checked.
        message: What was found.
        remedy: What to do about it.
    """

    level: Level
    subject: str
    message: str
    remedy: str = ""


def gigabytes(count: float) -> str:
    """Return a number of bytes in GB, such as ``72.7 GB``."""
    return f"{count / 1e9:,.1f} GB"
