import json
import logging
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import httpx2
import pytest
from redis import Redis

from console.services.jobs import event_hub
from console.services.shares import Share
from tasks.contract import position_order, record_key
from tasks.errors import JobError
from tasks.events import Note, Progress
from tasks.state.job_reader import event_streams
from tasks.state.record import DELETED
from tests.console.conftest import Console, job
from tests.waiting import wait_until


def read(client: httpx2.Client, job_id: str, **headers: str) -> list[dict[str, Any]]:
    """A job's events, to the end of the stream."""
    found = []
    with client.stream("GET", f"/jobs/{job_id}/events", headers=headers) as answer:
        if answer.status_code == 204:
            return []
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        for block in answer.read().decode().split("\n\n"):
            lines = dict(line.split(": ", 1) for line in block.splitlines() if ": " in line)
            if "data" in lines:
                found.append({"id": lines["id"], **json.loads(lines["data"])})
                assert lines["event"] == found[-1]["kind"]
    return found


def test_events_stream_from_the_first_to_the_jobs_end(console: Console) -> None:
    with console.client("acme") as client:
        job_id = client.post("/jobs", json=job()).json()["id"]
        with ThreadPoolExecutor() as pool:
            readers = [pool.submit(read, client, job_id) for _ in range(5)]
            _, token, *_ = console.state.begin(job_id, "prepare", worker="w", queue="c", tag="t")
            console.state.write(job_id, token, [Note(level="info", message="hello")])
            console.state.fail(job_id, token, JobError("broken"))
            streams = [reader.result(30) for reader in readers]
    kinds = [event["kind"] for event in streams[0]]
    assert kinds[:3] == ["accepted", "stage_started", "note"]
    assert kinds[-1] == "ended"
    assert all(other == streams[0] for other in streams)


def test_a_stream_ends_with_its_deleted_job(
    console: Console, acme: httpx2.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_hub, "_BLOCK_MS", 50)
    job_id = acme.post("/jobs", json=job()).json()["id"]
    path = f"/jobs/{job_id}/events"
    with acme.stream("GET", path) as answer:
        lines = answer.iter_lines()
        assert any(line == "event: accepted" for line in lines)
        # Both at once: the stream's reader finds no end of the job.
        with console.redis.pipeline() as pipe:
            pipe.hset(record_key(job_id), "status", DELETED)
            pipe.delete(*event_streams(job_id))
            pipe.execute()
        assert next((line for line in lines if line.startswith("event: ")), None) is None


def test_a_stream_ends_with_its_key(console: Console, acme: httpx2.Client) -> None:
    job_id = acme.post("/jobs", json=job()).json()["id"]
    key = console.services.api_keys.create("reader", "acme")
    headers = {"Authorization": f"Bearer {key}"}
    with acme.stream("GET", f"/jobs/{job_id}/events", headers=headers) as answer:
        lines = answer.iter_lines()
        assert any(line == "event: accepted" for line in lines)
        console.services.api_keys.revoke("reader")
        acme.post(f"/jobs/{job_id}:pause")
        assert next((line for line in lines if line.startswith("event: ")), None) is None
    acme.post(f"/jobs/{job_id}:cancel")


def test_a_stream_resumes_after_the_last_event_id(acme: httpx2.Client) -> None:
    job_id = acme.post("/jobs", json=job()).json()["id"]
    acme.post(f"/jobs/{job_id}:pause")
    acme.post(f"/jobs/{job_id}:cancel")
    whole = read(acme, job_id)
    assert len(whole) >= 3
    for number, event in enumerate(whole):
        rest = whole[number + 1 :]
        assert read(acme, job_id, **{"Last-Event-ID": event["id"]}) == rest
    with acme.stream("GET", f"/jobs/{job_id}/events?after={whole[0]['id']}") as answer:
        assert len(answer.read().decode().split("data:")) - 1 == len(whole) - 1


def test_a_reopened_page_gets_the_whole_curve_and_every_other_event(console: Console) -> None:
    def steps(first: int) -> list[Progress]:
        numbers = range(first, first + 50)
        return [Progress(stage="train", done=it, total=5000, unit="steps") for it in numbers]

    with console.client("acme") as client, ThreadPoolExecutor() as pool:
        job_id = client.post("/jobs", json=job()).json()["id"]
        live = pool.submit(read, client, job_id)
        _, token, *_ = console.state.begin(job_id, "prepare", worker="w", queue="c", tag="t")
        for first in range(1, 5001, 50):
            console.state.write(job_id, token, [*steps(first), Note(level="info", message="x")])
        reopened = pool.submit(read, client, job_id)
        console.state.fail(job_id, token, JobError("broken"))
        streams = [live.result(30), reopened.result(30)]
    for found in [*streams, read(client := console.client("acme"), job_id)]:
        order = [position_order(event["id"]) for event in found]
        assert order == sorted(set(order))
        assert [event["kind"] for event in found].count("note") == 100
        done = [event["done"] for event in found if event["kind"] == "progress"]
        assert (done[0], done[-1]) == (1, 5000)
        assert len(done) >= 500
    middle = streams[0][len(streams[0]) // 2]
    rest = read(client, job_id, **{"Last-Event-ID": middle["id"]})
    client.close()
    assert rest[-1]["kind"] == "ended"
    assert [it for it in rest if it["kind"] == "note"] == [
        it for it in streams[0][len(streams[0]) // 2 + 1 :] if it["kind"] == "note"
    ]


def test_a_browser_does_not_reconnect_after_the_last_event(acme: httpx2.Client) -> None:
    job_id = acme.post("/jobs", json=job()).json()["id"]
    acme.post(f"/jobs/{job_id}:cancel")
    last = read(acme, job_id)[-1]["id"]
    headers = {"Last-Event-ID": last}
    assert acme.get(f"/jobs/{job_id}/events", headers=headers).status_code == 204


def test_many_readers_of_a_job_share_one_connection(console: Console, redis_client: Redis) -> None:
    def blocked() -> int:
        return int(redis_client.info("clients")["blocked_clients"])

    before = blocked()
    with console.client("acme") as client, ThreadPoolExecutor(20) as pool:
        job_id = client.post("/jobs", json=job()).json()["id"]
        streams = [pool.submit(read, client, job_id) for _ in range(15)]
        while blocked() == before:
            assert not any(stream.done() for stream in streams)
        assert blocked() == before + 1
        client.post(f"/jobs/{job_id}:cancel")
        assert all(stream.result(30)[-1]["kind"] == "ended" for stream in streams)


def test_a_client_that_disconnects_ends_its_stream_quietly(
    console: Console, redis_client: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    def blocked() -> int:
        return int(redis_client.info("clients")["blocked_clients"])

    wait_until(lambda: blocked() == 0, timeout_s=30, description="no reader of another test")
    with console.client("acme") as client:
        job_id = client.post("/jobs", json=job()).json()["id"]
        with client.stream("GET", f"/jobs/{job_id}/events") as answer:
            lines = answer.iter_lines()
            assert next(lines) == "retry: 2000"
            wait_until(lambda: blocked() == 1, timeout_s=30, description="a reader")
        wait_until(lambda: blocked() == 0, timeout_s=30, description="no reader")
        client.post(f"/jobs/{job_id}:cancel")
    assert [it for it in caplog.records if it.levelno >= logging.WARNING] == []


def test_streams_of_one_tenant_leave_room_for_others(
    console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    streams = Share("event streams", 6, retry_after_s=10)
    monkeypatch.setattr(console.services.events, "_streams", streams)
    with console.client("acme") as acme, console.client("zoo") as zoo, ExitStack() as opened:
        paths = [f"/jobs/{acme.post('/jobs', json=job()).json()['id']}/events" for _ in range(5)]
        answers = [opened.enter_context(acme.stream("GET", path)) for path in paths[:4]]
        assert [answer.status_code for answer in answers] == [200] * 4
        refused = acme.get(paths[4])
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "10")
        assert refused.json()["code"] == "too_many_requests"
        job_id = zoo.post("/jobs", json=job()).json()["id"]
        zoo.post(f"/jobs/{job_id}:cancel")
        assert read(zoo, job_id)[-1]["kind"] == "ended"
        opened.close()
        wait_until(lambda: not streams._held, timeout_s=30, description="no stream is open")
        with acme.stream("GET", paths[4]) as answer:
            assert answer.status_code == 200


@pytest.mark.parametrize("position", ["x", "-1", "1-2-3", "1" * 30, "$", "0-0\t1"])
def test_malformed_positions_are_refused(acme: httpx2.Client, position: str) -> None:
    job_id = acme.post("/jobs", json=job()).json()["id"]
    assert acme.get(f"/jobs/{job_id}/events", params={"after": position}).status_code == 400
