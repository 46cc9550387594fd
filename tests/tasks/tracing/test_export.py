"""Export of traces: a collector that is there, absent or silent, and a missing extra."""

import builtins
import logging
import socket
from typing import Any

import pytest

from tasks.tracing.spans import (
    ENDPOINT_VARIABLES,
    JobTrace,
    Tracing,
    span_id,
    start_tracing,
    trace_id,
)
from tests.otlp import receiving
from tests.waiting import wait_until

TRACES_ENDPOINT, ENDPOINT = ENDPOINT_VARIABLES


@pytest.fixture(autouse=True)
def no_endpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ENDPOINT_VARIABLES:
        monkeypatch.delenv(name, raising=False)


def record(tracing: Tracing) -> None:
    trace = JobTrace(tracing.tracer, "job")
    trace.record("train", "train 1", 1.0, 2.5, {"training.attempt": 1}, error_code="store")


@pytest.mark.parametrize(
    ("variable", "path"), [(TRACES_ENDPOINT, "/v1/traces"), (ENDPOINT, ""), (ENDPOINT, "/")]
)
def test_span_has_its_ids_times_attributes_and_error(
    variable: str, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with receiving() as receiver:
        monkeypatch.setenv(variable, receiver.url.removesuffix("/v1/traces") + path)
        tracing = start_tracing("gpu@here")
        record(tracing)
        tracing.close()
        [span] = receiver.trace(trace_id("job"))
    assert int.from_bytes(span.span_id) == span_id("job", "train 1")
    assert int.from_bytes(span.parent_span_id) == span_id("job")
    assert (span.start_time_unix_nano, span.end_time_unix_nano) == (10**9, 25 * 10**8)
    assert (span.status.code, span.status.message) == (2, "store")
    assert [it.key for it in span.attributes] == ["training.attempt"]
    assert receiver.workers == {"gpu@here"}


def test_a_silent_collector_delays_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    # If anything waited for the collector, this test would not end.
    monkeypatch.setattr("tasks.tracing.export._TIMEOUT_S", 1000.0)
    monkeypatch.setattr("tasks.tracing.export._CLOSE_TIMEOUT_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv(ENDPOINT, f"http://127.0.0.1:{silent.getsockname()[1]}")
        tracing = start_tracing("w")
        for _ in range(5000):
            record(tracing)
        tracing.close()


def test_spans_dropped_for_an_absent_collector_do_no_harm_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("tasks.tracing.export._TIMEOUT_S", 0.5)
    with receiving() as gone:
        monkeypatch.setenv(TRACES_ENDPOINT, gone.url)
    tracing = start_tracing("w")
    record(tracing)
    tracing.close()
    with receiving() as receiver:
        monkeypatch.setenv(TRACES_ENDPOINT, receiver.url)
        tracing = start_tracing("w")
        record(tracing)
        wait_until(
            lambda: bool(receiver.spans), timeout_s=20, description="a span is sent by itself"
        )
        tracing.close()


def test_logs_hold_no_secret_of_the_endpoint(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("tasks.tracing.export._TIMEOUT_S", 0.5)
    with receiving() as gone:
        host = gone.url.removeprefix("http://").removesuffix("/v1/traces")
    monkeypatch.setenv(TRACES_ENDPOINT, f"http://user:secret@{host}/?token=secret")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "secret")
    caplog.set_level(logging.INFO)
    tracing = start_tracing("w")
    record(tracing)
    tracing.close()
    assert "the trace collector takes no spans" in caplog.text
    assert "secret" not in caplog.text


def test_without_an_endpoint_spans_are_discarded(caplog: pytest.LogCaptureFixture) -> None:
    tracing = start_tracing("w")
    record(tracing)
    tracing.close()
    assert not caplog.records


@pytest.mark.parametrize("variable", ENDPOINT_VARIABLES)
def test_without_the_extra_one_warning_is_logged(
    variable: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    imported = builtins.__import__

    def without_extra(name: str, *args: Any, **options: Any) -> Any:
        if name == "tasks.tracing.export":
            raise ModuleNotFoundError(name)
        return imported(name, *args, **options)

    monkeypatch.setenv(variable, "http://user:secret@here:4318")
    monkeypatch.setattr(builtins, "__import__", without_extra)
    tracing = start_tracing("w")
    record(tracing)
    tracing.close()
    [warning] = caplog.records
    assert "pip install 'training-worker[tracing]'" in warning.getMessage()
    assert "secret" not in caplog.text
