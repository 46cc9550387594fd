"""A job's trace: one span for the job, one for each start of a stage, and those below.

All ids are derived from the job's, so that nothing is to be handed on: a retry, another worker or a
replay joins the same trace. Attributes hold no prompt, caption, path or message, only names of
ours and numbers. Knows nothing of OpenTelemetry; ``tasks/tracing/otlp.py`` sends spans.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from tasks.state.record import JobSummary

ROOT = ""
"""The path of the job's own span."""


@dataclass(frozen=True)
class Span:
    """Something that took time.

    Attributes:
        job_id: Whose trace it is in.
        name: What was done.
        path: What its id is derived from, the same for the same thing.
        parent: The path of the span that it is part of; None for the job's own.
        began_at: In seconds since the epoch, by the broker's clock as far as it is known.
        ended_at: As ``began_at``.
        attributes: More about it.
        error: The code of the error that it ended with.
    """

    job_id: str
    name: str
    path: str
    parent: str | None
    began_at: float
    ended_at: float
    attributes: Mapping[str, str | int | float] = field(default_factory=dict)
    error: str | None = None

    @property
    def trace_id(self) -> int:
        """128 bits, of the job."""
        return trace_id(self.job_id)

    @property
    def span_id(self) -> int:
        """64 bits."""
        return span_id(self.job_id, self.path)


Trace = Callable[[Sequence[Span]], None]
"""Sends spans, now or later; never waits and never fails."""


def trace_id(job_id: str) -> int:
    """The id of a job's trace, 128 bits."""
    return _number(f"trace {job_id}", 16)


def span_id(job_id: str, path: str) -> int:
    """The id of the span of a path, 64 bits."""
    return _number(f"span {job_id} {path}", 8)


def job_span(head: JobSummary, status: str, ended_at: float, error: str | None) -> Span:
    """A job's own span, the root of its trace."""
    attributes: dict[str, str | int | float] = {
        "training.job.id": head.id,
        "training.job.status": status,
        "training.job.queue": head.gpu_queue,
    }
    began_at = head.created_at.timestamp()
    return Span(head.id, "job", ROOT, None, began_at, ended_at, attributes, error)


def _number(text: str, length: int) -> int:
    # 0 is no id; by chance it does not come up.
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:length])
