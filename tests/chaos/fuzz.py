"""Generated messages in every served queue while jobs run: no worker ends, every job ends right.

``python -m tests.chaos.fuzz --messages 10000 --seed N [--report FILE]``: the same seed generates
the same messages for the same jobs.
"""

import argparse
import base64
import copy
import hashlib
import json
import random
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

from benchmarks.results import report_result
from routing.queues import SUBMIT_QUEUE
from tasks.metrics import UNREADABLE_MESSAGES
from tasks.state.counters import Counters
from tests.chaos.__main__ import prepare
from tests.chaos.cluster import Cluster
from tests.chaos.runs import Jobs, new_jobs
from tests.poison import NO_EMBED, body_of, message, unreadable
from tests.waiting import wait_until

QUEUES = ("cpu", "gpu.40gb", SUBMIT_QUEUE)
_PER_JOB = 1000
_BURST = 50
_WITHIN_S = 240.0
_VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**31, 2**63, 10**30, 0.5, 1e308, float("nan"), float("inf"),
    "", "x", "x" * 5000, "\x1b[2J\n", "\u202e", "\U0001f600", "training.train", "gzip",
    "2999-01-01T00:00:00Z", "base64", "gpu.40gb", [], {}, [[]], [None], {"": {}}, ["x"] * 100,
    [[[[[[[[]]]]]]]],
    {"task": "training.train", "args": [], "kwargs": {}, "options": {}},
    {"__type__": "datetime", "__value__": "x"},
)  # fmt: skip


@dataclass
class Fuzzed:
    """The result of a run.

    Attributes:
        sent: The number of messages by queue.
        set_aside: The number of messages that the guard refused.
        jobs: The number of jobs that ran meanwhile, and ended right.
        seconds: The duration.
        growth_mib: By how much the largest worker process grew.
    """

    sent: Counter[str] = field(default_factory=Counter)
    set_aside: int = 0
    jobs: int = 0
    seconds: float = 0.0
    growth_mib: float = 0.0


def generate(chance: random.Random, queue: str, job_id: str) -> bytes:
    """Return a message: one of ``tests/poison.py``, a good one with changes, or noise."""
    match chance.randrange(6):
        case 0:
            return chance.choice(list(unreadable(queue).values()))
        case 1:
            return chance.randbytes(chance.randrange(300))
        case 2:
            return json.dumps(_value(chance)).encode()
        case 3:
            text = bytearray(json.dumps(_good(chance, queue, job_id)).encode())
            for _ in range(chance.randrange(1, 6)):
                text[chance.randrange(len(text))] = chance.randrange(256)
            return bytes(text[: chance.randrange(len(text) // 2, len(text) * 2)])
        case 4:
            return json.dumps(_changed(chance, _good(chance, queue, job_id))).encode()
        case _:
            document = _good(chance, queue, job_id)
            body = _changed(chance, json.loads(base64.b64decode(document["body"])))
            return json.dumps(document | {"body": body_of(body)}).encode()


def run(cluster: Cluster, jobs: Jobs, number: int, chance: random.Random) -> Fuzzed:
    """Send messages while one job after the other runs.

    Raises:
        AssertionError: A worker ended, a job did not end right, or a message stays.
    """
    began, result = time.monotonic(), Fuzzed()
    processes = [process for host in cluster.hosts for process in host.processes()]
    before = {process.pid: process.memory_info().rss for process in _workers(cluster)}
    while result.sent.total() < number:
        which = chance.randrange(len(jobs.documents))
        job_id = f"fuzz-{chance.getrandbits(48):012x}"
        cluster.client.submit({**jobs.documents[which], "id": job_id})
        for _ in range(0, min(_PER_JOB, number - result.sent.total()), _BURST):
            queue = chance.choice(QUEUES)
            cluster.redis.lpush(queue, *(generate(chance, queue, job_id) for _ in range(_BURST)))
            result.sent[queue] += _BURST
            time.sleep(0.1)
        _wait_until_ended(cluster, job_id)
        record = cluster.client.state.get(job_id)
        assert record.result is not None, f"{record.error}\n{cluster.log()}"
        data = cluster.store.get(record.result["files"][0])
        assert hashlib.sha256(data).hexdigest() == jobs.expected[which]
        result.jobs += 1
    wait_until(
        lambda: not any(_left(cluster).values()),
        timeout_s=_WITHIN_S,
        description="no message is left",
        detail=lambda: f"{_left(cluster)}\n{cluster.log()}",
    )
    after = {process.pid: process.memory_info().rss for process in _workers(cluster)}
    assert before.keys() == after.keys(), f"workers ended\n{cluster.log()}"
    assert all(process.is_running() for process in processes if process.pid in before)
    counts = Counters(cluster.redis, timedelta(hours=1)).read()
    result.set_aside = sum(n for _, n in UNREADABLE_MESSAGES.samples(counts))
    result.growth_mib = max(after[pid] - before[pid] for pid in before) / 2**20
    result.seconds = time.monotonic() - began
    return result


def _good(chance: random.Random, queue: str, job_id: str) -> dict[str, Any]:
    job = chance.choice([job_id, "no-such-job"])
    argument = {"id": job} if queue == SUBMIT_QUEUE else job
    return message(queue, [[argument], {}, copy.deepcopy(NO_EMBED)])


def _changed(chance: random.Random, document: Any) -> Any:
    """Return a document with some values replaced, removed or added at any depth."""
    for _ in range(chance.choice((1, 1, 2, 4))):
        place = document
        while True:
            keys = list(range(len(place))) if isinstance(place, list) else list(place)
            if not keys or chance.random() < 0.1:
                if isinstance(place, dict):
                    place[str(chance.choice(_VALUES))[:20]] = _value(chance)
                break
            key = chance.choice(keys)
            if isinstance(place[key], (dict, list)) and chance.random() < 0.7:
                place = place[key]
                continue
            if chance.random() < 0.2:
                del place[key]
            else:
                place[key] = _value(chance)
            break
    return document


def _value(chance: random.Random) -> Any:
    return copy.deepcopy(chance.choice(_VALUES))


def _workers(cluster: Cluster) -> list[Any]:
    """Return the main process and the pool's child of each worker."""
    found = []
    for host in cluster.hosts:
        for kind in ("cpu", "gpu"):
            found += [host.worker(kind), host.child(kind)]
    return found


def _wait_until_ended(cluster: Cluster, job_id: str) -> None:
    wait_until(
        lambda: cluster.client.state.get(job_id).status.ended,
        timeout_s=_WITHIN_S,
        description=f"{job_id} has ended",
        detail=lambda: f"{cluster.client.state.get(job_id)}\n{_left(cluster)}\n{cluster.log()}",
    )


def _left(cluster: Cluster) -> dict[str, int]:
    left = {queue: int(cluster.redis.llen(queue)) for queue in QUEUES}
    return left | {"unacked": int(cluster.redis.hlen("unacked"))}


def main() -> int:
    """Run the fuzz and report it; the exit code is 1 if a promise was broken."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.fuzz", description=__doc__)
    parser.add_argument("--messages", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--report", type=Path, help="a Markdown file to write the result into")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="fuzz-") as name, Cluster(Path(name)) as cluster:
        jobs = new_jobs(cluster, *prepare(Path(name)))
        result = run(cluster, jobs, arguments.messages, random.Random(arguments.seed))
    by_queue = ", ".join(f"{count:,} in `{queue}`" for queue, count in sorted(result.sent.items()))
    report_result(
        arguments.report,
        "Fuzz",
        f"python -m tests.chaos.fuzz --messages {arguments.messages} --seed {arguments.seed}",
        "no worker process ends, every job has the result of an undisturbed run, no message stays.",
        [
            f"{result.sent.total():,} generated messages ({by_queue}) while {result.jobs} jobs "
            f"ran, in {result.seconds / 60:.0f} minutes.",
            "Worker processes that ended: 0 of 8. Jobs with another result: 0.",
            f"Set aside before Celery read them: {result.set_aside:,}; the others named no job, or "
            "a stage that the job had begun.",
            f"Largest growth of a worker process: {result.growth_mib:.0f} MiB.",
        ],
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
