"""A backend in one file: sends a job, follows it, and prints its result.

    python example_backend.py redis://broker:6379/0 job.json

It needs ``celery[redis]`` and ``contract.py`` beside it, and nothing else of training-worker.
"""

import json
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import contract
from celery import Celery
from celery.result import AsyncResult
from redis import Redis


def send(app: Celery, job: dict[str, Any]) -> AsyncResult:
    """Send a job; the result's id follows it to its end."""
    # Flower and logs show only the job's id, because the job may contain secrets.
    redacted = repr((job["id"],))
    return app.send_task(contract.SUBMIT, (job,), queue=contract.SUBMIT_QUEUE, argsrepr=redacted)


def follow(redis: Redis, job_id: str, result: AsyncResult) -> Iterator[dict[str, Any]]:
    """Yield the job's events until it ends; none if it is refused at once."""
    streams, position = (contract.events_key(job_id), contract.progress_key(job_id)), "0"
    while True:
        ended = result.ready()
        # The first call only waits: it may return one stream while the other has older entries.
        redis.xread(dict.fromkeys(streams, position), block=1000)
        reply = redis.xread(dict.fromkeys(streams, position))
        entries = [entry for _, found in reply for entry in found]
        for entry, fields in sorted(entries, key=lambda it: contract.position_order(it[0])):
            position = entry
            yield json.loads(fields[contract.EVENT_FIELD])
        if ended and not reply:
            return


def describe(event: dict[str, Any]) -> str:
    """Describe an event in one line."""
    kind = event.pop("kind")
    if kind == "progress":
        return f"{event['stage']}: {event['done']} of {event['total']} {event['unit']}"
    return f"{kind}: {json.dumps(event)}"


def main() -> int:
    """Run the example, and return 1 for a failed job."""
    url, path = sys.argv[1:]
    app = Celery(broker=url, backend=url)
    app.conf.update(accept_content=["json"], result_accept_content=["json"])
    redis = Redis.from_url(url.replace("redis+socket:", "unix:", 1), decode_responses=True)
    job = {"id": uuid.uuid4().hex[:12], **json.loads(Path(path).read_text("utf-8"))}
    result = send(app, job)
    for event in follow(redis, job["id"], result):
        print(describe(event), flush=True)
    outcome = result.get(propagate=False)
    if not isinstance(outcome, Exception):
        print(f"result: {json.dumps(outcome)}")
        return 0
    failure = dict(zip(contract.ERROR_FIELDS, outcome.args, strict=True))
    print(f"{failure['code']} in {failure['stage']}: {failure['message']}")
    print(f"({contract.ERROR_CODES[failure['code']]})")
    return 1


if __name__ == "__main__":
    sys.exit(main())
