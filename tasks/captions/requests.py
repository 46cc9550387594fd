"""Requests for captions of an upload's images. Imports no Redis: the trainer reads them, too."""

from typing import Literal

from tasks.strict_model import StrictModel

CaptionStyle = Literal["short", "detailed"]
MAX_IMAGES = 1000
"""The images of a run: more is a day's work on a CPU, and its captions a large reply."""


class CaptionModel(StrictModel):
    """The model that writes captions, as the settings of the run's sender name it."""

    model: str
    """A Hub id, or a folder as the workers see it."""
    revision: str | None = None
    """The commit, branch or tag of the Hub's repository; null for its newest commit."""
    max_tokens: int
    """Tokens of a caption, at most."""


class CaptionRequestDocument(StrictModel):
    """What is to be captioned; it never changes."""

    tenant: str
    upload: str
    """The id of the upload."""
    files: tuple[str, ...] | None
    """The names of the images in it; null for all."""
    style: CaptionStyle
    queue: str
    model: CaptionModel
