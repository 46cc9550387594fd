"""Messages that no worker can process, by their names. Each once ended a worker or misused one."""

import base64
import json
from functools import cache
from typing import Any
from uuid import uuid4

NO_EMBED: dict[str, Any] = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}
_TASKS = {"submit": "training.submit", "cpu": "training.prepare"}
SUBMISSION = [[{"training": {}}], {}, NO_EMBED]


def body_of(value: object) -> str:
    """Return a body as kombu encodes it."""
    return base64.b64encode(json.dumps(value).encode()).decode()


def message(queue: str, body: object, /, **changes: Any) -> dict[str, Any]:
    """Return a message of a stage whose job does not exist.

    Args:
        queue: Its queue.
        body: Its body; a text is taken as it is.
        changes: Fields of the envelope; ``headers`` and ``properties`` are merged.
    """
    message_id = str(uuid4())
    document: dict[str, Any] = {
        "body": body if isinstance(body, str) else body_of(body),
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": {
            "lang": "py",
            "task": _TASKS.get(queue, "training.train"),
            "id": message_id,
            "root_id": message_id,
            "parent_id": None,
            "group": None,
            "retries": 0,
            "timelimit": [None, None],
            "eta": None,
            "expires": None,
        },
        "properties": {
            "correlation_id": message_id,
            "delivery_mode": 2,
            "delivery_info": {"exchange": "", "routing_key": queue},
            "priority": 0,
            "body_encoding": "base64",
            "delivery_tag": str(uuid4()),
        },
    }
    for name, value in changes.items():
        merged = isinstance(value, dict)
        document[name] = {**document[name], **value} if merged else value
    return document


@cache
def unreadable(queue: str) -> dict[str, bytes]:
    """Return messages for a queue."""
    body = [["no-such-job"], {}, NO_EMBED]

    def changed(new_body: object = body, /, **changes: Any) -> bytes:
        return json.dumps(message(queue, new_body, **changes)).encode()

    def headers(**changes: Any) -> bytes:
        return changed(headers=changes)

    def embedded(**changes: Any) -> bytes:
        return changed([["no-such-job"], {}, NO_EMBED | changes])

    def without(name: str) -> bytes:
        document = message(queue, body)
        del document[name]
        return json.dumps(document).encode()

    signature = {
        "task": "training.train",
        "args": ["no-such-job"],
        "kwargs": {},
        "options": {"queue": "gpu.40gb"},
        "subtask_type": None,
        "immutable": True,
    }
    return {
        "no JSON": b"hello",
        "bytes": b"\xff\xfe\x00",
        "nothing": b"",
        "null": b"null",
        "a number": b"42",
        "a list": b"[1, 2]",
        "an empty list": b"[]",
        "an empty object": b"{}",
        "100,000 brackets": b"[" * 100_000,
        "100,000 closed brackets": b"[" * 100_000 + b"]" * 100_000,
        "a number of 5,000 digits": b"1" * 5000,
        "3 MiB": b'"' + b"x" * (3 * 2**20) + b'"',
        "no properties": without("properties"),
        "properties null": changed(properties=None),
        "properties a list": changed(properties=[1]),
        "no headers": without("headers"),
        "headers null": changed(headers=None),
        "headers a list": changed(headers=["task"]),
        "no body": without("body"),
        "body a number": changed(body=3),
        "body empty": changed(""),
        "body not base64": changed("@@@"),
        "body not UTF-8": changed(base64.b64encode(b"\x80\x04pickle").decode()),
        "body an object": changed({"a": 1}),
        "body a scalar": changed(1),
        "body of one element": changed([["no-such-job"]]),
        "body of 100,000 brackets": changed(base64.b64encode(b"[" * 100_000).decode()),
        "body with a wrong date": changed(
            [["no-such-job"], {"x": {"__type__": "datetime", "__value__": "soon"}}, None]
        ),
        "body encoding unknown": changed(properties={"body_encoding": "rot13"}),
        "content type null": changed(**{"content-type": None}),
        "content type a list": changed(**{"content-type": ["application/json"]}),
        "content type of pickles": changed(**{"content-type": "application/x-python-serialize"}),
        "content encoding unknown": changed(**{"content-encoding": "zzz"}),
        "content encoding a list": changed(**{"content-encoding": []}),
        "compression": headers(compression="gzip"),
        "no such compression": headers(compression="zzz"),
        "priority a text": changed(properties={"priority": "high"}),
        "task a list": headers(task=["training.prepare"]),
        "task unknown": headers(task="no.such"),
        "task null": headers(task=None),
        "id null": headers(id=None),
        "id a number": headers(id=3),
        "id with control characters": headers(id="\x1b]0;x\x07\n"),
        "root id a list": headers(root_id=["x"]),
        "shadow with control characters": headers(shadow="\x1b[2J"),
        "stamps of another type": headers(stamps=3, stamped_headers=5),
        "stamped headers of objects": headers(stamps={}, stamped_headers=[{}]),
        "timelimit no pair": headers(timelimit="x"),
        "timelimit of one": headers(timelimit=[1]),
        "timelimit of texts": headers(timelimit=["1", "2"]),
        "retries a text": headers(retries="x"),
        "retries negative": headers(retries=-1),
        "eta a text": headers(eta="soon"),
        "eta a number": headers(eta=10**18),
        "eta in 2999": headers(eta="2999-01-01T00:00:00+00:00"),
        "eta in the year 1": headers(eta="0001-01-01T00:00:00+23:59"),
        "expires a text": headers(expires="soon"),
        "expires a number": headers(expires=10**18),
        "version a text": headers(training_version="x"),
        "chain in a header": headers(chain=[signature]),
        "errbacks in a header": headers(errbacks=[signature]),
        "method in a header": headers(get="x"),
        "callbacks": embedded(callbacks=[signature]),
        "errbacks": embedded(errbacks=[signature]),
        "chord": embedded(chord=signature),
        "chain of text": embedded(chain=["x"]),
        "chain to another task": embedded(chain=[{**signature, "task": "no.such"}]),
        "chain to another queue": embedded(chain=[{**signature, "options": {"queue": "x"}}]),
        "chain of another job": embedded(chain=[{**signature, "args": ["another"]}]),
        "chain with a callback": embedded(
            chain=[{**signature, "options": {"queue": "gpu.40gb", "link": [signature]}}]
        ),
        "embedded attributes": embedded(id="x", delivery_info={}),
        "no arguments": changed([[], {}, NO_EMBED]),
        "argument an object": changed([[{"x": 1}], {}, NO_EMBED]),
        "keyword arguments a list": changed([["no-such-job"], [], NO_EMBED]),
        "stage of another queue": headers(
            task="training.train" if queue == "cpu" else "training.publish"
        ),
        "errbacks of a submission": changed(
            [[{}], {}, NO_EMBED | {"errbacks": [signature]}], headers={"task": "training.submit"}
        ),
        "chain of a submission": changed(
            [[{}], {}, NO_EMBED | {"chain": [signature]}], headers={"task": "training.submit"}
        ),
        "delivered without end": changed(properties={"deliveries": 1000}),
    }
