"""The console's API under load: requests for a job while many clients follow its events.

    python -P -m benchmarks.api_load [--streams 200] [--requests 3000] [--report FILE]

A console runs in a separate process, a job reports its progress ten times a second, and a second
process holds streams of its events open. The benchmark alternates between requests to the API and
to a bare FastAPI route that serves the same bytes from a third process. Goal: 95 % of the API's
responses in under 100 ms.
"""

import argparse
import asyncio
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx2
import uvicorn
from fastapi import FastAPI, Response

from benchmarks.results import parser_of, report_result
from tasks.access.api_keys import ApiKeys
from tasks.events import Progress
from tasks.settings.settings import Settings
from tasks.stages.submit import submit
from tasks.state.connection import connect
from tasks.state.job_store import JobStore
from tests.console.conftest import job
from tests.integration.fleets import free_port
from tests.waiting import wait_until
from worker.local.embedded_broker import EmbeddedBroker
from worker.supervision.process import spawn, stop

_PATIENCE_S = 60.0
_EVENTS_A_SECOND = 10
_ROUNDS = 8


def main() -> None:
    """Measure and print, or run as one of the other processes."""
    if sys.argv[1:2] == ["bare"]:
        _serve_bare(int(sys.argv[2]), Path(sys.argv[3]).read_bytes())
    elif sys.argv[1:2] == ["streams"]:
        asyncio.run(_follow(int(sys.argv[2]), int(sys.argv[3]), *sys.argv[4:6]))
    else:
        parser = parser_of(__doc__)
        parser.add_argument("--streams", type=int, default=200)
        parser.add_argument("--requests", type=int, default=3000)
        _measure(parser.parse_args())


def _measure(arguments: argparse.Namespace) -> None:
    with ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="api-load-")))
        broker = stack.enter_context(EmbeddedBroker(home))
        settings = Settings(home=home)
        key = ApiKeys(settings.api_keys_file).create("bench", None)
        state = JobStore(connect(broker.url), settings.job_ttl)
        job_id, _, _ = submit(job(), state, "result")
        port, bare_port = free_port(), free_port()
        env = {
            **os.environ,
            "TRAINING_BROKER_URL": broker.url,
            "TRAINING_HOME": str(home),
            "TRAINING_CONSOLE_PORT": str(port),
            "TRAINING_API_RATE_LIMIT": "1000000",
        }
        console = spawn([sys.executable, "-P", "-m", "console"], env=env)
        stack.callback(stop, console, grace_s=10)
        headers = {"Authorization": f"Bearer {key}"}
        api = f"http://127.0.0.1:{port}/v1/jobs/{job_id}"
        _wait_for(f"http://127.0.0.1:{port}/v1/health")
        answer = home / "answer"
        answer.write_bytes(httpx2.get(api, headers=headers).content)
        bare = f"http://127.0.0.1:{bare_port}/"
        stack.enter_context(_other("bare", str(bare_port), str(answer)))
        _wait_for(bare)
        client = stack.enter_context(httpx2.Client(headers=headers, timeout=_PATIENCE_S))
        alone = _asked(client, {"API": api, "bare": bare}, arguments.requests)
        stack.enter_context(_running(state, job_id))
        streams = stack.enter_context(
            _other("streams", str(port), str(arguments.streams), key, job_id)
        )
        assert streams.stdout is not None
        opened = int(streams.stdout.readline())
        busy = _asked(client, {"API": api, "bare": bare}, arguments.requests)
        assert streams.stdin is not None
        streams.stdin.close()
        rate = int(streams.stdout.readline())
    report_result(
        arguments.report,
        "API load",
        f"python -P -m benchmarks.api_load --streams {arguments.streams} "
        f"--requests {arguments.requests}",
        "p95 of the API under 100 ms",
        [
            f"GET of a job, no streams: {_shown(alone)}",
            f"GET of a job, {opened} streams of a running job's events: {_shown(busy)}",
            f"events received meanwhile, over all streams: {rate} a second",
        ],
    )


def _asked(
    client: httpx2.Client, addresses: dict[str, str], requests: int
) -> dict[str, list[float]]:
    """Return the milliseconds of each request, alternating between the addresses."""
    found: dict[str, list[float]] = {name: [] for name in addresses}
    for _ in range(_ROUNDS):
        for name, url in addresses.items():
            for _ in range(requests // _ROUNDS):
                began = time.perf_counter()
                client.get(url).raise_for_status()
                found[name].append((time.perf_counter() - began) * 1000)
    return found


def _shown(found: dict[str, list[float]]) -> str:
    return ", ".join(
        f"{name} median {statistics.median(times):.1f} ms, "
        f"p95 {statistics.quantiles(times, n=20)[-1]:.1f} ms"
        for name, times in found.items()
    )


@contextmanager
def _running(state: JobStore, job_id: str) -> Iterator[None]:
    """Report the progress of a job's stage, as a worker does."""
    _, token, *_ = state.begin(job_id, "prepare", worker="w", queue="cpu", tag="t")
    over = threading.Event()

    def report_progress() -> None:
        done = 0
        while not over.wait(1 / _EVENTS_A_SECOND):
            done += 1
            progress = Progress(stage="prepare", done=done, total=10**6, unit="files")
            state.write(job_id, token, [progress])

    thread = threading.Thread(target=report_progress)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@contextmanager
def _other(*arguments: str) -> Iterator["subprocess.Popen[bytes]"]:
    """Start another process of this benchmark."""
    command = [sys.executable, "-P", "-m", "benchmarks.api_load", *arguments]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        yield process
    finally:
        process.terminate()
        process.wait()


def _wait_for(url: str) -> None:
    def answers() -> bool:
        try:
            return httpx2.get(url).status_code == 200
        except httpx2.TransportError:
            return False

    wait_until(answers, timeout_s=_PATIENCE_S, description=f"{url} answers")


def _serve_bare(port: int, content: bytes) -> None:
    app = FastAPI()

    @app.get("/")
    async def bare() -> Response:
        return Response(content, media_type="application/json")

    uvicorn.run(app, port=port, log_config=None, access_log=False)


async def _follow(port: int, count: int, key: str, job_id: str) -> None:
    """Keep streams open until the standard input ends; print their number and events per second."""
    received = 0

    async def follow(opened: asyncio.Semaphore) -> None:
        nonlocal received
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        request = f"GET /v1/jobs/{job_id}/events HTTP/1.1\r\nHost: localhost\r\n"
        writer.write(f"{request}Authorization: Bearer {key}\r\n\r\n".encode())
        line = await reader.readline()
        assert b" 200 " in line, line
        opened.release()
        while line := await reader.readline():
            received += line.startswith(b"data: ")

    opened = asyncio.Semaphore(0)
    streams = [asyncio.create_task(follow(opened)) for _ in range(count)]
    for _ in streams:
        await opened.acquire()
    print(count, flush=True)
    first, began = received, time.monotonic()
    await asyncio.to_thread(sys.stdin.read)
    print(round((received - first) / (time.monotonic() - began)), flush=True)
    for stream in streams:
        stream.cancel()


if __name__ == "__main__":
    main()
