"""Nothing that anyone sends ends a worker: every message of ``tests/poison.py`` in every queue."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from routing.queues import SUBMIT_QUEUE
from tasks.stages.messages import read_message
from tasks.state.connection import connect
from tests.integration.fleets import PATIENCE_S, Fleet
from tests.poison import unreadable
from tests.waiting import wait_until
from worker.local.embedded_broker import find_running

SERVED = (SUBMIT_QUEUE, "cpu", "gpu.40gb")


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    """Two GPU workers: one trains while the other one takes messages."""
    with Fleet(tmp_path / "fleet", "40gb,40gb") as running:
        yield running


@pytest.fixture
def broker(fleet: Fleet) -> Iterator[Redis]:
    url = find_running(fleet.home)
    assert url is not None
    with connect(url) as client:
        yield client


def refused(queue: str) -> list[bytes]:
    """Return the messages that are unreadable by themselves: some are submissions of wrong jobs."""
    return [text for text in unreadable(queue).values() if not is_readable(text, queue)]


def is_readable(text: bytes, queue: str) -> bool:
    try:
        read_message(text, queue)
    except ValueError:
        return False
    return True


def pids(fleet: Fleet) -> list[int]:
    return sorted(process.pid for process in fleet.workers())


def test_unreadable_messages_end_no_worker(
    fleet: Fleet, broker: Redis, job: dict[str, Any]
) -> None:
    job["training"] |= {"max_train_steps": 6000, "save_every_n_steps": 6000}
    running = fleet.submit(job).documents[0]["job_id"]
    wait_until(
        lambda: "train" in fleet.record(running).stages,
        timeout_s=PATIENCE_S,
        description="the job trains",
        detail=fleet.log,
    )
    before, attempt = pids(fleet), fleet.record(running).attempt
    for queue in SERVED:
        broker.lpush(queue, *unreadable(queue).values())

    def is_quiet() -> bool:
        return not sum(broker.llen(queue) for queue in (*SERVED, "gpu.80gb")) and (
            broker.hlen("unacked") == broker.zcard("unacked_index") <= 1
        )

    def detail() -> str:
        lengths = {queue: broker.llen(queue) for queue in (*SERVED, "gpu.80gb")}
        return f"{lengths} {broker.hgetall('unacked')}\n{fleet.log()}"

    wait_until(is_quiet, timeout_s=PATIENCE_S, description="all are set aside", detail=detail)
    # No worker serves this queue: the reconciler finds them. Last, since the newest 100 are kept.
    broker.lpush("gpu.80gb", *refused("gpu.80gb"))
    wait_until(is_quiet, timeout_s=PATIENCE_S, description="the last ones, too", detail=detail)
    assert pids(fleet) == before, fleet.log()
    assert fleet.record(running).attempt == attempt
    counts = fleet.counts()
    for queue in (*SERVED, "gpu.80gb"):
        taken = counts[f"training_unreadable_messages_total|{queue}"]
        # A worker refuses one more, for its number of deliveries.
        assert taken == len(refused(queue)) + (queue in SERVED), (queue, fleet.log())
    doctor = fleet.run("doctor", "--json")
    assert f"{len(refused('gpu.80gb'))} in gpu.80gb" in doctor.out, doctor

    job["training"] |= {"max_train_steps": 4}
    behind = fleet.submit(job).documents[0]["job_id"]
    wait_until(
        lambda: fleet.record(behind).status == "succeeded",
        timeout_s=PATIENCE_S,
        description="a job behind them ends",
        detail=fleet.log,
    )
    assert fleet.record(running).attempt == attempt
    assert "no-such-job" not in fleet.log()
