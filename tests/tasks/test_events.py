import pytest
from pydantic import ValidationError

from tasks.events import Event, EventRouter, Heartbeat, Note, Progress, parse_event

NOTE = Note(level="info", message="hello")
PROGRESS = Progress(stage="train", done=1, total=2, unit="steps")


def test_a_line_that_is_not_an_event_is_refused() -> None:
    assert parse_event(NOTE.model_dump_json()) == NOTE
    with pytest.raises(ValidationError):
        parse_event('{"kind": "applause"}')


def test_texts_for_people_are_cut() -> None:
    note = Note(level="info", message="x" * 5_000_000)
    assert len(note.message) < 4000
    assert " [...] " in note.message


def test_a_router_calls_observers_and_one_handler() -> None:
    calls: list[tuple[str, Event]] = []
    router = EventRouter(lambda event: calls.append(("default", event)))
    router.observe(Progress, lambda event: calls.append(("first", event)))
    router.observe(Progress, lambda event: calls.append(("second", event)))
    router.handle(Heartbeat, lambda event: calls.append(("handler", event)))
    for event in (NOTE, PROGRESS, Heartbeat()):
        router(event)
    assert calls == [
        ("default", NOTE),
        ("first", PROGRESS),
        ("second", PROGRESS),
        ("default", PROGRESS),
        ("handler", Heartbeat()),
    ]
