"""Two workers of one name: only one of them may live."""

import os
import subprocess
import sys
from collections.abc import Callable
from datetime import timedelta

import pytest
from redis import Redis

from tasks.settings.settings import Settings
from tasks.state.workers import WorkerHeartbeat, WorkerInfo, live_workers
from worker.errors import WorkerNameTakenError
from worker.lifecycle.registration import Registration, is_gone, new_instance
from worker.periodic import PeriodicThread, ThreadWatch

NAME = "gpu@cloned-host"
TIMEOUT = timedelta(seconds=2)
INFO = WorkerInfo(queues=("gpu.40gb",), memory_class=None)


@pytest.fixture
def register(redis_client: Redis) -> Callable[..., Registration]:
    def make(watch: ThreadWatch | None = None) -> Registration:
        settings = Settings(visibility_timeout=TIMEOUT)
        watch = watch or ThreadWatch()
        return Registration(redis_client, settings, NAME, INFO, lambda: None, watch)

    return make


def other_worker(client: Redis, instance: str) -> WorkerHeartbeat:
    info = INFO.model_copy(update={"instance": instance})
    return WorkerHeartbeat(client, NAME, info, TIMEOUT * 2)


def instance_of(client: Redis) -> str:
    return live_workers(client)[NAME].instance


@pytest.mark.parametrize(
    "instance",
    ["elsewhere:1:ab12", "unknown", new_instance()],
    ids=["elsewhere", "unknown", "here"],
)
def test_a_second_live_worker_is_refused(
    register: Callable[..., Registration], redis_client: Redis, instance: str
) -> None:
    first = other_worker(redis_client, instance)
    first.renew()
    thread = PeriodicThread(ThreadWatch(), "first", TIMEOUT.total_seconds() / 4, first.renew)
    thread.start()
    with pytest.raises(
        WorkerNameTakenError, match=f"another live worker is named {NAME}: .*--name"
    ):
        register().claim_name()
    thread.stop()
    assert instance_of(redis_client) == instance


def test_the_name_of_a_silent_worker_is_taken(
    register: Callable[..., Registration], redis_client: Redis
) -> None:
    other_worker(redis_client, "elsewhere:1:ab12").renew()
    register().claim_name()
    assert is_own(instance_of(redis_client))


def is_own(instance: str) -> bool:
    return instance.split(":")[1] == str(os.getpid())


def test_a_killed_worker_of_this_machine_is_replaced_at_once(
    register: Callable[..., Registration], redis_client: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = "from worker.lifecycle.registration import new_instance; print(new_instance())"
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    instance = run.stdout.strip()
    assert is_gone(instance)
    assert not is_gone(new_instance())
    assert not is_gone(instance.replace("-", "+", 1))  # another machine's
    other_worker(redis_client, instance).renew()
    taken = register()
    monkeypatch.setattr(taken, "_is_renewed", lambda: pytest.fail("it need not wait"))
    taken.claim_name()
    assert is_own(instance_of(redis_client))


def test_a_worker_removes_only_its_own_entry(
    register: Callable[..., Registration], redis_client: Redis
) -> None:
    first = register()
    first.claim_name()
    redis_client.flushall()
    other_worker(redis_client, "elsewhere:1:ab12").renew()
    first.on_stopped()
    assert instance_of(redis_client) == "elsewhere:1:ab12"


def test_a_worker_that_lost_its_name_drains(
    register: Callable[..., Registration], redis_client: Redis
) -> None:
    """As after a freeze, in which its entry expired and another one started."""
    drains: list[int] = []
    frozen = register(ThreadWatch(lambda: drains.append(1)))
    frozen.claim_name()
    frozen.renew(1, 0)
    assert drains == []
    redis_client.flushall()
    other_worker(redis_client, "elsewhere:1:ab12").renew()
    frozen.renew(1, 0)
    frozen.renew(1, 0)
    assert drains == [1]
    assert instance_of(redis_client) == "elsewhere:1:ab12"
