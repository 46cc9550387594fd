import base64
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from celery import Celery, chain
from hypothesis import given, settings
from hypothesis import strategies as st
from redis import Redis

from tasks.app import make_app
from tasks.contract import CAPTION, STAGES, task_name
from tasks.settings.settings import Settings
from tasks.stages.messages import read_message
from tasks.state.stage_message import stage_message
from tests.poison import NO_EMBED, SUBMISSION, message, unreadable

STAGE = [["a-job"], {}, NO_EMBED]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda values: st.lists(values) | st.dictionaries(st.text(), values),
    max_leaves=20,
)


@pytest.fixture
def app(broker_url: str) -> Celery:
    return make_app(Settings(), broker_url)


def text_of(document: object) -> str:
    return json.dumps(document)


def sent(redis_client: Redis, queue: str) -> str:
    return str(redis_client.rpop(queue))


@pytest.mark.parametrize("stage", STAGES)
def test_our_own_messages_are_read(stage: str) -> None:
    message = stage_message("a-job", "the-result", stage, "gpu.40gb", label="job=j")
    found = read_message(message.text, message.queue)
    assert (found.job_id, found.stage, found.deliveries) == ("a-job", stage, 0)


def test_a_chain_of_celery_is_read(app: Celery, redis_client: Redis) -> None:
    tasks = [
        app.signature(task_name(stage), ("a-job",), queue=queue, immutable=True)
        for stage, queue in zip(STAGES, ("cpu", "gpu.40gb", "gpu.40gb", "cpu"), strict=True)
    ]
    chain(tasks).apply_async(task_id="the-result")
    found = read_message(sent(redis_client, "cpu"), "cpu")
    assert (found.job_id, found.stage, found.deliveries) == ("a-job", "prepare", 0)


@pytest.mark.parametrize("queue", ["cpu", "gpu.8gb"])
def test_a_request_for_captions_is_read(app: Celery, redis_client: Redis, queue: str) -> None:
    app.send_task(CAPTION, ("a-run",), queue=queue, task_id="a-run", ignore_result=True)
    text = sent(redis_client, queue)
    found = read_message(text, queue)
    assert (found.job_id, found.stage) == (None, None)
    for other in ("submit", "gpu.8gb.invoke-training"):
        with pytest.raises(ValueError, match="in the queue of another task"):
            read_message(text, other)
    app.send_task(CAPTION, ("../a", "b"), queue=queue)
    with pytest.raises(ValueError, match="body"):
        read_message(sent(redis_client, queue), queue)


@pytest.mark.parametrize("countdown", [None, 600])
def test_a_submission_of_plain_celery_is_read(
    redis_client: Redis, broker_url: str, countdown: float | None
) -> None:
    plain = Celery(broker=broker_url, backend=broker_url)
    plain.send_task("training.submit", ({"id": "x"},), queue="cpu", countdown=countdown)
    found = read_message(sent(redis_client, "cpu"), "cpu")
    assert (found.job_id, found.stage) == (None, None)


@pytest.mark.parametrize(
    "changes",
    [
        {"headers": {"traceparent": "00-x-y-01", "baggage": None}},
        {"headers": {"headers": {"sentry-trace": "x"}, "something": {"nested": [1]}}},
        {"headers": {"eta": (datetime.now(UTC) + timedelta(minutes=5)).isoformat()}},
        {"headers": {"expires": "2026-12-01T00:00:00Z"}},
        {"properties": {"delivery_tag": {"a": 1}, "delivery_info": None, "priority": None}},
        {"properties": {"reply_to": "x", "user_id": "me", "timestamp": 3}},
        {"content-encoding": "UTF-8"},
        {"extra": True},
    ],
)
def test_messages_of_other_senders_are_read(changes: dict[str, Any]) -> None:
    document = message("cpu", SUBMISSION, **changes)
    document["headers"]["task"] = "training.submit"
    assert read_message(text_of(document), "cpu").job_id is None


def test_the_least_message_is_read() -> None:
    least = {
        "body": json.dumps([[{"id": "x"}], {}, None]),
        "content-type": "application/json",
        "content-encoding": "utf-8",
        "headers": {"task": "training.submit", "id": "1"},
        "properties": {},
    }
    assert read_message(text_of(least), "cpu").document == least


def test_a_job_of_one_mebibyte_is_read_and_a_larger_message_is_not() -> None:
    document = [[{"caption": "x" * 2**20}], {}, NO_EMBED]
    submit = {"task": "training.submit"}
    read_message(text_of(message("cpu", document, headers=submit)), "cpu")
    document[0] = [{"caption": "x" * 2**21}]
    with pytest.raises(ValueError, match="is larger than"):
        read_message(text_of(message("cpu", document, headers=submit)), "cpu")


@pytest.mark.parametrize("queue", ["cpu", "gpu.40gb"])
@pytest.mark.parametrize("name", sorted(unreadable("cpu").keys() - {"delivered without end"}))
def test_unreadable_messages_are_refused(queue: str, name: str) -> None:
    with pytest.raises(ValueError, match=r".") as raised:
        read_message(unreadable(queue)[name], queue)
    assert raised.value.__cause__ is None
    assert "no-such-job" not in str(raised.value)
    assert str(raised.value).isprintable()


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("id a number", "message.headers.id: Input should be a valid string"),
        ("body an object", "body: Input should be a valid array"),
        ("errbacks", "body.2.errbacks: List should have at most 0 items after validation, not 1"),
        ("100,000 brackets", "cannot be decoded (RecursionError)"),
    ],
)
def test_a_refusal_names_the_field(name: str, reason: str) -> None:
    with pytest.raises(ValueError, match=r".") as raised:
        read_message(unreadable("cpu")[name], "cpu")
    assert str(raised.value) == reason


def test_a_key_twice_is_refused() -> None:
    body = json.dumps(SUBMISSION).replace('"training": {}', '"training": {}, "training": {}')
    document = message("submit", base64.b64encode(body.encode()).decode())
    with pytest.raises(ValueError, match="has a key more than once in a mapping of its body"):
        read_message(text_of(document), "submit")


def test_a_refusal_quotes_no_secret() -> None:
    secret = "https://bucket/?signature=secret"
    parts = {"id": 1, "priority": secret, "chain": secret, secret: secret}
    for changes in ({"headers": parts}, {"properties": parts}):
        with pytest.raises(ValueError, match=r".") as raised:
            read_message(text_of(message("cpu", STAGE, **changes)), "cpu")
        assert "secret" not in str(raised.value)
        assert raised.value.__suppress_context__
    embed = NO_EMBED | {secret: 1}
    with pytest.raises(ValueError, match="Extra") as raised:
        read_message(text_of(message("cpu", [["a-job"], {}, embed])), "cpu")
    assert "secret" not in str(raised.value)


@given(st.binary(max_size=300) | JSON.map(lambda value: json.dumps(value).encode()))
def test_any_text_is_read_or_refused(text: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        read_message(text, "cpu")


@given(JSON, st.data())
@settings(max_examples=300)
def test_a_message_with_any_change_is_read_or_refused(value: object, data: st.DataObject) -> None:
    document = message("cpu", STAGE)
    part: Any = data.draw(st.sampled_from([document, document["headers"], document["properties"]]))
    part[data.draw(st.sampled_from(sorted(part)))] = value
    try:
        found = read_message(text_of(document), "cpu")
    except ValueError:
        return
    # What passed is what the worker reads.
    assert isinstance(found.document["headers"]["id"], str)
    assert isinstance(found.document["properties"], dict)


@given(JSON)
def test_a_body_with_any_embed_sends_nothing_else(embed: object) -> None:
    text = text_of(message("cpu", [["a-job"], {}, embed]))
    try:
        found = read_message(text, "cpu")
    except ValueError:
        return
    *_, kept = json.loads(base64.b64decode(found.document["body"]))
    assert not any((kept or {}).values())
