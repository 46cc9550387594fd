"""Sends the spans of jobs' traces by OTLP over HTTP.

A thread sends them in batches. A receiver that is away or slow costs spans, never time: what does
not fit the queue is dropped.
"""

import threading
from collections.abc import Sequence
from importlib.metadata import version

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, TraceFlags
from opentelemetry.trace.status import Status, StatusCode

from tasks.tracing.spans import Span, span_id

_SEND_EVERY_MS = 1000
_TIMEOUT_S = 5.0
_CLOSE_WITHIN_S = 5.0
_NS = 1_000_000_000


class Tracer:
    """Sends spans.

    Args:
        url: Where they go.
        worker: Who sends them.
    """

    def __init__(self, url: str, worker: str) -> None:
        own = version("training-worker")
        self._resource = Resource.create(
            {
                "service.name": "training-worker",
                "service.version": own,
                "service.instance.id": worker,
            }
        )
        self._scope = InstrumentationScope("training-worker", own)
        self._url = url
        self._processor: BatchSpanProcessor | None = None

    def send(self, spans: Sequence[Span]) -> None:
        """Send spans in a while; see ``tasks.tracing.spans.Trace``."""
        if self._processor is None:
            # Now, as its thread does not survive a fork.
            exporter = OTLPSpanExporter(self._url, timeout=_TIMEOUT_S)
            self._processor = BatchSpanProcessor(exporter, schedule_delay_millis=_SEND_EVERY_MS)
        for span in spans:
            self._processor.on_end(self._readable(span))

    def close(self) -> None:
        """Send what waits, for as long as a few seconds."""
        if self._processor is None:
            return
        closing = threading.Thread(target=self._processor.shutdown, daemon=True)
        closing.start()
        closing.join(_CLOSE_WITHIN_S)

    def _readable(self, span: Span) -> ReadableSpan:
        parent = None if span.parent is None else span_id(span.job_id, span.parent)
        status = Status() if span.error is None else Status(StatusCode.ERROR, span.error)
        return ReadableSpan(
            name=span.name,
            context=_context(span.trace_id, span.span_id),
            parent=None if parent is None else _context(span.trace_id, parent),
            resource=self._resource,
            attributes=span.attributes,
            status=status,
            start_time=int(span.began_at * _NS),
            end_time=int(max(span.began_at, span.ended_at) * _NS),
            instrumentation_scope=self._scope,
        )


def _context(trace_id: int, own_id: int) -> SpanContext:
    return SpanContext(
        trace_id, own_id, is_remote=False, trace_flags=TraceFlags(TraceFlags.SAMPLED)
    )
