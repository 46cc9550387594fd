"""Sends spans by OTLP over HTTP; the only module that needs the ``tracing`` extra.

The SDK's thread sends them in batches. A collector that is unavailable or slow costs spans, never
time: spans that do not fit the queue are dropped.
"""

import logging
import threading
from collections.abc import Sequence
from importlib.metadata import version

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExportResult
from opentelemetry.sdk.trace.id_generator import IdGenerator

from tasks.tracing.spans import NEXT_IDS

logger = logging.getLogger(__name__)

# A job is visible while it runs; the SDK's default of 5 s would delay short stages' spans.
_SEND_EVERY_MS = 1000
# A batch that takes longer is dropped: the queue fills meanwhile.
_TIMEOUT_S = 5.0
# A worker's shutdown waits no longer for a collector that hangs.
_CLOSE_TIMEOUT_S = 5.0


class JobIds(IdGenerator):
    """Gives each span the ids that ``JobTrace.record`` derived from its job."""

    def generate_trace_id(self) -> int:
        """The trace's id; the SDK asks for it for spans without a parent only."""
        return NEXT_IDS.get()[0]

    def generate_span_id(self) -> int:
        """The span's id."""
        return NEXT_IDS.get()[1]


class OtlpTracerProvider(TracerProvider):
    """Makes the tracer of this process; the SDK reads the endpoint from the environment.

    Args:
        process: See ``tasks.tracing.spans.start_tracing``.
    """

    def __init__(self, process: str) -> None:
        # The SDK logs the endpoint's URL and malformed headers, which may hold passwords.
        logging.getLogger("opentelemetry").setLevel(logging.CRITICAL + 1)
        resource = Resource.create(
            {
                "service.name": "training-worker",
                "service.version": version("training-worker"),
                "service.instance.id": process,
            }
        )
        # The SDK's own shutdown at exit may take 30 s.
        super().__init__(resource=resource, id_generator=JobIds(), shutdown_on_exit=False)
        exporter = _LoggedExporter(timeout=_TIMEOUT_S)
        self.add_span_processor(BatchSpanProcessor(exporter, schedule_delay_millis=_SEND_EVERY_MS))

    def shutdown(self) -> None:
        """Send the remaining spans, for a few seconds at most."""
        closing = threading.Thread(target=super().shutdown, daemon=True)
        closing.start()
        closing.join(_CLOSE_TIMEOUT_S)


class _LoggedExporter(OTLPSpanExporter):
    """Logs when the collector stops taking spans and when it takes them again.

    The messages hold nothing of the endpoint.
    """

    _fails = False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Send spans."""
        result = super().export(spans)
        fails = result is not SpanExportResult.SUCCESS
        if fails and not self._fails:
            logger.warning("the trace collector takes no spans: they are dropped")
        elif self._fails and not fails:
            logger.info("the trace collector takes spans again")
        self._fails = fails
        return result
