"""What is done to a cluster while a job runs. Each fault leaves it so that ``heal`` mends it."""

import json
import random
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from itertools import product
from uuid import uuid4

import psutil

from tasks.stages.train import checkpoints_of
from tests.chaos.cluster import Cluster, signal_all, sleep


@dataclass(frozen=True)
class Strike:
    """Where and how a fault strikes."""

    cluster: Cluster
    job_id: str
    chance: random.Random


@dataclass(frozen=True)
class Fault:
    """A fault.

    Attributes:
        name: As it is reported.
        strike: Makes it; returns when nothing more happens by itself.
        restarts: Whether stages may begin anew for it.
        cancels: Whether the job is to end as cancelled.
        only_train: Whether it needs a job that trains.
        needs_small_disk: Whether the store must be on a disk that can be filled.
        needs_slow_store: Whether the store must be one that can be slow.
        takes_long: Whether it is made only when asked for.
    """

    name: str
    strike: Callable[[Strike], None]
    restarts: bool = True
    cancels: bool = False
    only_train: bool = False
    needs_small_disk: bool = False
    needs_slow_store: bool = False
    takes_long: bool = False


def _kill(process: psutil.Process | None) -> None:
    if process is not None:
        signal_all("kill", [process])


def _kind(it: Strike) -> str:
    """Of the worker that has the job's newest stage."""
    record = it.cluster.client.state.get(it.job_id)
    newest = max(record.stages.values(), key=lambda stage: stage.attempt)
    return "cpu" if "-cpu@" in newest.worker else "gpu"


def _kill_trainer(it: Strike) -> None:
    _kill(it.cluster.host_of(it.job_id).trainer())


def _kill_child(it: Strike) -> None:
    _kill(it.cluster.host_of(it.job_id).child(_kind(it)))


def _kill_worker(it: Strike) -> None:
    _kill(it.cluster.host_of(it.job_id).worker(_kind(it)))


def _kill_host(it: Strike) -> None:
    it.cluster.host_of(it.job_id).kill()


def _end_worker(it: Strike) -> None:
    host = it.cluster.host_of(it.job_id)
    with suppress(psutil.NoSuchProcess):
        host.worker(_kind(it)).send_signal(signal.SIGTERM)
        host.worker(_kind(it)).wait(30)


def _freeze(it: Strike, processes: list[psutil.Process], timeouts: float) -> None:
    signal_all("suspend", processes)
    sleep(timeouts)
    signal_all("resume", processes)


def _freeze_trainer(it: Strike) -> None:
    trainer = it.cluster.host_of(it.job_id).trainer()
    _freeze(it, [trainer] if trainer else [], 0.5)


def _freeze_worker_for_long(it: Strike) -> None:
    _freeze(it, [it.cluster.host_of(it.job_id).worker(_kind(it))], 2.0)


def _freeze_host(it: Strike) -> None:
    _freeze(it, it.cluster.host_of(it.job_id).processes(), 0.4)


def _freeze_host_for_long(it: Strike) -> None:
    _freeze(it, it.cluster.host_of(it.job_id).processes(), 2.5)


def _restart_broker(it: Strike) -> None:
    it.cluster.broker.kill()
    time.sleep(it.chance.uniform(0, 2))
    it.cluster.broker.start()


def _broker_away(it: Strike) -> None:
    it.cluster.broker.kill()
    sleep(2.0)
    it.cluster.broker.start()


def _broker_away_for_a_minute(it: Strike) -> None:
    it.cluster.broker.kill()
    time.sleep(60)
    it.cluster.broker.start()


def _cut(it: Strike) -> None:
    network = it.cluster.host_of(it.job_id).network
    network.cut()
    time.sleep(it.chance.uniform(0, 0.4))
    network.heal()


def _cut_for_long(it: Strike) -> None:
    network = it.cluster.host_of(it.job_id).network
    network.cut()
    sleep(2.0)
    network.heal()


def _swallow(it: Strike) -> None:
    network = it.cluster.host_of(it.job_id).network
    network.swallow()
    sleep(2.0)
    network.heal()


def _deliver_twice(it: Strike) -> None:
    """As a publisher that tries again after it lost its connection: a tag of its own."""
    for entry in it.cluster.redis.hvals("unacked"):
        message, _, queue = json.loads(str(entry))
        message["properties"]["delivery_tag"] = str(uuid4())
        it.cluster.redis.lpush(queue, json.dumps(message))


def _submit_twice(it: Strike) -> None:
    record = it.cluster.client.state.get(it.job_id)
    assert it.cluster.client.submit(record.job.model_dump(mode="json")) == it.job_id


def _damage_checkpoint(it: Strike) -> None:
    """The newest one, while nobody has it in memory any more."""
    host = it.cluster.host_of(it.job_id)
    trainer = host.trainer()
    if trainer is None:
        return
    signal_all("suspend", [trainer])
    saved = checkpoints_of(it.cluster.client.state.get(it.job_id).refs)
    if saved:
        key, store = saved[-1].state_key, it.cluster.store
        data = bytearray(store.get(key))
        data[it.chance.randrange(len(data) // 2, len(data))] ^= 1 << it.chance.randrange(8)
        store.put(key, bytes(data))
    _kill(trainer)


def _store_away(it: Strike) -> None:
    """As a network file system that is not mounted any more."""
    folder = it.cluster.disk / "store"
    away = folder.with_name("store.away")
    folder.rename(away)
    folder.touch()
    time.sleep(it.chance.uniform(0.5, 4))
    folder.unlink()
    away.rename(folder)


def _slow_store(it: Strike) -> None:
    """As one that is far away: each step of reading or writing an object takes half a second."""
    slow = it.cluster.disk / "store.slow"
    slow.touch()
    time.sleep(it.chance.uniform(2, 8))
    slow.unlink()


def _fill_disk(it: Strike) -> None:
    filler = it.cluster.disk / "filler"
    with filler.open("wb") as file, suppress(OSError):
        while True:
            file.write(bytes(2**20))
            file.flush()
    time.sleep(it.chance.uniform(0.5, 4))
    filler.unlink()


def _lose_message(it: Strike) -> None:
    """The next one, as a worker does that dies between taking it and noting that it has it."""
    workers = []
    for host, kind in product(it.cluster.hosts, ("cpu", "gpu")):
        with suppress(psutil.NoSuchProcess):  # an earlier fault may have ended it
            workers.append(host.worker(kind))
    signal_all("suspend", workers)  # their children work on, and send the next stage
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and not it.cluster.client.state.get(it.job_id).status.ended:
        if it.cluster.redis.rpop("cpu") or it.cluster.redis.rpop("gpu.40gb"):
            break
        time.sleep(0.05)
    signal_all("resume", workers)


def _cancel(it: Strike) -> None:
    it.cluster.client.cancel(it.job_id)


ALL = (
    Fault("trainer killed", _kill_trainer, restarts=False, only_train=True),
    Fault("pool child killed", _kill_child),
    Fault("worker killed", _kill_worker),
    Fault("host killed", _kill_host),
    Fault("worker ended", _end_worker),
    Fault("trainer frozen", _freeze_trainer, restarts=False, only_train=True),
    Fault("worker frozen for long", _freeze_worker_for_long),
    Fault("host frozen", _freeze_host, restarts=False),
    Fault("host frozen for long", _freeze_host_for_long),
    Fault("broker restarted", _restart_broker),
    Fault("broker away", _broker_away),
    Fault("broker away for a minute", _broker_away_for_a_minute, takes_long=True),
    Fault("network cut", _cut),
    Fault("network cut for long", _cut_for_long),
    Fault("network swallows", _swallow),
    Fault("store away", _store_away),
    Fault("store slow", _slow_store, restarts=False, needs_slow_store=True),
    Fault("disk full", _fill_disk, needs_small_disk=True),
    Fault("delivered twice", _deliver_twice, restarts=False),
    Fault("submitted twice", _submit_twice, restarts=False),
    Fault("checkpoint damaged", _damage_checkpoint, only_train=True),
    Fault("message lost", _lose_message),
    Fault("cancelled", _cancel, restarts=False, cancels=True),
)
