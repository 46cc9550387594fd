"""Traces where their receiver is away, slow, or nobody can send them."""

import socket

import pytest
from pydantic import ValidationError

from tasks.errors import NotInstalledError
from tasks.settings.settings import Settings
from tasks.tracing import setup as traces
from tasks.tracing.otlp import Tracer
from tasks.tracing.spans import Span
from tests.otlp import receiving
from tests.waiting import wait_until

SPAN = Span("job", "train", "train 1", "", 1.0, 2.5, {"training.attempt": 1}, "store")


def test_a_span_comes_with_its_ids_times_attributes_and_error() -> None:
    with receiving() as receiver:
        tracer = Tracer(receiver.url, "gpu@here")
        tracer.send([SPAN])
        tracer.close()
        [span] = receiver.trace(SPAN.trace_id)
    assert int.from_bytes(span.span_id) == SPAN.span_id
    assert (span.start_time_unix_nano, span.end_time_unix_nano) == (10**9, 25 * 10**8)
    assert (span.status.code, span.status.message) == (2, "store")
    assert [it.key for it in span.attributes] == ["training.attempt"]
    assert receiver.workers == {"gpu@here"}


def test_a_receiver_that_swallows_everything_holds_up_nobody(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Were it waited for, this test would not end.
    monkeypatch.setattr("tasks.tracing.otlp._TIMEOUT_S", 1000.0)
    monkeypatch.setattr("tasks.tracing.otlp._CLOSE_WITHIN_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        tracer = Tracer(f"http://127.0.0.1:{silent.getsockname()[1]}/v1/traces", "w")
        tracer.send([SPAN] * 5000)
        tracer.close()


def test_what_was_sent_before_a_receiver_was_there_is_no_fault_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("tasks.tracing.otlp._TIMEOUT_S", 0.5)
    with receiving() as gone:
        url = gone.url
    tracer = Tracer(url, "w")
    tracer.send([SPAN])
    tracer.close()
    with receiving() as receiver:
        tracer = Tracer(receiver.url, "w")
        tracer.send([SPAN])
        wait_until(lambda: bool(receiver.spans), timeout_s=20, description="a span comes by itself")
        tracer.close()


def test_without_a_receiver_nothing_is_made_and_without_the_extra_it_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert traces.tracer_of(Settings(), "w") is None

    def missing(name: str) -> object:
        raise ModuleNotFoundError(name)

    monkeypatch.setattr("tasks.tracing.setup.importlib.import_module", missing)
    with pytest.raises(NotInstalledError, match=r"training-worker\[tracing\]"):
        traces.tracer_of(Settings(traces_url="http://here:4318/v1/traces"), "w")


@pytest.mark.parametrize("url", ["here:4318", "ftp://here", "http://", "https://user:pw@here/"])
def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(ValidationError, match="traces_url") as refused:
        Settings(traces_url=url)
    assert "pw" not in refused.value.errors()[0]["msg"]
