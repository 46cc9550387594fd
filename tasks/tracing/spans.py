"""The trace of a job: spans of the job, of each start of a stage, and of the trainer's work.

The processes that work on a job share no trace context: all ids are derived from the job's id, so
that a retry, another worker or a replay joins the same trace. Attributes hold no prompt, caption,
path or message, only our own names and numbers.
"""

import hashlib
import logging
import os
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field

from opentelemetry.context import Context
from opentelemetry.trace import (
    NonRecordingSpan,
    NoOpTracer,
    SpanContext,
    Status,
    StatusCode,
    TraceFlags,
    Tracer,
    set_span_in_context,
)

from tasks.extras import not_installed
from tasks.state.record import JobSummary

logger = logging.getLogger(__name__)

ENDPOINT_VARIABLES = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
"""Where traces go; the SDK reads them, the first one first, and its other ``OTEL_`` variables."""

NEXT_IDS: ContextVar[tuple[int, int]] = ContextVar("next_ids")
"""The ids of the span that ``JobTrace.record`` is starting: the trace's and its own."""

_JOB_PATH = ""
_NS = 1_000_000_000


@dataclass(frozen=True)
class Tracing:
    """The tracer of this process, and how to close it.

    Attributes:
        tracer: Makes spans; without an endpoint it discards them.
        close: Sends the remaining spans, for a few seconds at most.
    """

    tracer: Tracer = field(default_factory=NoOpTracer)
    close: Callable[[], None] = lambda: None


def start_tracing(process: str) -> Tracing:
    """Start sending traces if an endpoint is configured.

    Call it in the process that makes the spans: the thread that sends them does not survive a fork.

    Args:
        process: This process's ``service.instance.id``, such as a worker's name.
    """
    if not has_endpoint():
        return Tracing()
    try:
        from tasks.tracing.export import OtlpTracerProvider
    except ModuleNotFoundError:
        # Clusters set the variables for every container, so a missing extra is no error.
        logger.warning("no traces are sent: %s", not_installed("opentelemetry.sdk"))
        return Tracing()
    provider = OtlpTracerProvider(process)
    return Tracing(provider.get_tracer("training-worker"), provider.shutdown)


def has_endpoint() -> bool:
    """Whether an endpoint for traces is configured."""
    return any(os.environ.get(name) for name in ENDPOINT_VARIABLES)


def trace_id(job_id: str) -> int:
    """The id of a job's trace, 128 bits."""
    return _hashed(f"trace {job_id}", 16)


def span_id(job_id: str, path: str = _JOB_PATH) -> int:
    """The id of a span, 64 bits.

    Args:
        job_id: The job.
        path: The span's place in the job's trace, unique in it; empty for the job's own span.
    """
    return _hashed(f"span {job_id} {path}", 8)


class JobTrace:
    """Records the spans of one job, each when it is over.

    Args:
        tracer: Makes the spans.
        job_id: The job.
    """

    def __init__(self, tracer: Tracer, job_id: str) -> None:
        self._tracer, self._job_id = tracer, job_id

    def record(
        self,
        name: str,
        path: str,
        started_at: float,
        ended_at: float,
        attributes: Mapping[str, str | int | float],
        *,
        parent: str | None = _JOB_PATH,
        error_code: str | None = None,
    ) -> None:
        """Record a span.

        The API's tracer takes no ids, the SDK's asks its ``IdGenerator`` for them within
        ``start_span`` (``Tracer.start_span`` in ``opentelemetry/sdk/trace/__init__.py``): the
        generator of ``tasks.tracing.export`` answers with ``NEXT_IDS``. A parent is named by its
        ids alone, as one of another process would be: it is recorded later, or elsewhere.

        Args:
            name: The span's name.
            path: See ``span_id``.
            started_at: In seconds since the epoch, by the broker's clock as far as it is known.
            ended_at: As ``started_at``.
            attributes: More about it.
            parent: The path of the span that it is part of; None for the job's own span.
            error_code: The code of the error that it ended with.
        """
        context = Context()
        if parent is not None:
            ids = trace_id(self._job_id), span_id(self._job_id, parent)
            context = set_span_in_context(
                NonRecordingSpan(SpanContext(*ids, True, TraceFlags(TraceFlags.SAMPLED))), context
            )
        token = NEXT_IDS.set((trace_id(self._job_id), span_id(self._job_id, path)))
        try:
            span = self._tracer.start_span(
                name, context, attributes=attributes, start_time=int(started_at * _NS)
            )
        finally:
            NEXT_IDS.reset(token)
        if error_code is not None:
            span.set_status(Status(StatusCode.ERROR, error_code))
        span.end(int(max(started_at, ended_at) * _NS))


def record_job(
    tracer: Tracer, job: JobSummary, status: str, ended_at: float, error_code: str | None
) -> None:
    """Record a job's own span, the root of its trace.

    Args:
        tracer: Makes the span.
        job: The job.
        status: How it ended.
        ended_at: When it ended; see ``JobTrace.record``.
        error_code: The code of the error that it ended with.
    """
    attributes = {
        "training.job.id": job.id,
        "training.job.status": status,
        "training.job.queue": job.gpu_queue,
    }
    started_at = job.created_at.timestamp()
    JobTrace(tracer, job.id).record(
        "job", _JOB_PATH, started_at, ended_at, attributes, parent=None, error_code=error_code
    )


def _hashed(text: str, length: int) -> int:
    # 0 is no valid id; no hash is expected to be 0.
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:length])
