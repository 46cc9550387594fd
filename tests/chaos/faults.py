"""The faults that strike a cluster while a job runs. ``Cluster.heal`` undoes each of them."""

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

from routing.queues import SUBMIT_QUEUE
from tasks.state.connection import connect
from tests.chaos.cluster import Cluster, signal_all, sleep
from tests.poison import unreadable
from tests.refusals import REFUSALS, Refusal

_ENDS_WITHIN_S = 30.0


@dataclass(frozen=True)
class Strike:
    """A fault's target, and its source of random numbers."""

    cluster: Cluster
    job_id: str
    chance: random.Random


@dataclass(frozen=True)
class Fault:
    """A fault.

    Attributes:
        name: Its name in reports.
        strike: Causes it, and returns when its own part is over.
        restarts: Whether it may restart stages.
        cancels: Whether it cancels the job.
        only_train: Whether it needs a job that trains.
        needs_small_disk: Whether the store must be on a disk that can be filled.
        needs_slow_store: Whether the store must be one that can be slowed down.
        takes_long: Whether it runs only on request.
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
        # Until then it looks like one that runs, and heal starts no other one.
        process.wait(_ENDS_WITHIN_S)


def _worker_kind(strike: Strike) -> str:
    """Return the kind of the worker that began the job's newest stage."""
    record = strike.cluster.client.state.get(strike.job_id)
    newest = max(record.stages.values(), key=lambda stage: stage.attempt)
    return "cpu" if "-cpu@" in newest.worker else "gpu"


def _kill_trainer(strike: Strike) -> None:
    _kill(strike.cluster.host_of(strike.job_id).trainer())


def _kill_child(strike: Strike) -> None:
    _kill(strike.cluster.host_of(strike.job_id).child(_worker_kind(strike)))


def _kill_worker(strike: Strike) -> None:
    _kill(strike.cluster.host_of(strike.job_id).worker(_worker_kind(strike)))


def _kill_host(strike: Strike) -> None:
    strike.cluster.host_of(strike.job_id).kill()


def _end_worker(strike: Strike) -> None:
    host = strike.cluster.host_of(strike.job_id)
    with suppress(psutil.NoSuchProcess):
        host.worker(_worker_kind(strike)).send_signal(signal.SIGTERM)
        host.worker(_worker_kind(strike)).wait(_ENDS_WITHIN_S)


def _freeze(processes: list[psutil.Process], timeouts: float) -> None:
    signal_all("suspend", processes)
    sleep(timeouts)
    signal_all("resume", processes)


def _freeze_trainer(strike: Strike) -> None:
    trainer = strike.cluster.host_of(strike.job_id).trainer()
    _freeze([trainer] if trainer else [], 0.5)


def _freeze_worker_for_long(strike: Strike) -> None:
    _freeze([strike.cluster.host_of(strike.job_id).worker(_worker_kind(strike))], 2.0)


def _freeze_host(strike: Strike) -> None:
    _freeze(strike.cluster.host_of(strike.job_id).processes(), 0.4)


def _freeze_host_for_long(strike: Strike) -> None:
    _freeze(strike.cluster.host_of(strike.job_id).processes(), 2.5)


def _restart_broker(strike: Strike) -> None:
    strike.cluster.broker.kill()
    time.sleep(strike.chance.uniform(0, 2))
    strike.cluster.broker.start()


def _stop_broker(strike: Strike) -> None:
    strike.cluster.broker.kill()
    sleep(2.0)
    strike.cluster.broker.start()


def _stop_broker_for_a_minute(strike: Strike) -> None:
    strike.cluster.broker.kill()
    time.sleep(60)
    strike.cluster.broker.start()


def _refuse(refusal: Refusal) -> Callable[[Strike], None]:
    """Return a fault: the broker answers, and refuses requests with a reply."""

    def strike(strike: Strike) -> None:
        broker = strike.cluster.broker
        with connect(broker.url) as client, refusal.during(client, broker.folder):
            time.sleep(strike.chance.uniform(1, 6))

    return strike


def _cut(strike: Strike) -> None:
    network = strike.cluster.host_of(strike.job_id).network
    network.cut()
    time.sleep(strike.chance.uniform(0, 0.4))
    network.heal()


def _cut_for_long(strike: Strike) -> None:
    network = strike.cluster.host_of(strike.job_id).network
    network.cut()
    sleep(2.0)
    network.heal()


def _drop_packets(strike: Strike) -> None:
    network = strike.cluster.host_of(strike.job_id).network
    network.drop_packets()
    sleep(2.0)
    network.heal()


def _deliver_twice(strike: Strike) -> None:
    """Publish the held messages again under new tags, as a publisher that retries."""
    for entry in strike.cluster.redis.hvals("unacked"):
        message, _, queue = json.loads(str(entry))
        message["properties"]["delivery_tag"] = str(uuid4())
        strike.cluster.redis.lpush(queue, json.dumps(message))


def _submit_twice(strike: Strike) -> None:
    record = strike.cluster.client.state.get(strike.job_id)
    assert strike.cluster.client.submit(record.job.model_dump(mode="json")) == strike.job_id


def _damage_checkpoint(strike: Strike) -> None:
    """Flip a bit of the newest checkpoint, and kill the trainer that has it in memory."""
    host = strike.cluster.host_of(strike.job_id)
    trainer = host.trainer()
    if trainer is None:
        return
    signal_all("suspend", [trainer])
    saved = strike.cluster.client.state.get(strike.job_id).artifacts.checkpoints
    if saved:
        key, store = saved[-1].state_key, strike.cluster.store
        data = bytearray(store.get(key))
        data[strike.chance.randrange(len(data) // 2, len(data))] ^= 1 << strike.chance.randrange(8)
        store.put(key, bytes(data))
    _kill(trainer)


def _remove_store(strike: Strike) -> None:
    """Replace the store's folder by a file, as when a network file system is unmounted."""
    folder = strike.cluster.disk / "store"
    removed = folder.with_name("store.removed")
    folder.rename(removed)
    folder.touch()
    time.sleep(strike.chance.uniform(0.5, 4))
    folder.unlink()
    removed.rename(folder)


def _slow_store(strike: Strike) -> None:
    """Delay each step of reading or writing an object by half a second."""
    slow = strike.cluster.disk / "store.slow"
    slow.touch()
    time.sleep(strike.chance.uniform(2, 8))
    slow.unlink()


def _fill_disk(strike: Strike) -> None:
    filler = strike.cluster.disk / "filler"
    with filler.open("wb") as file, suppress(OSError):
        while True:
            file.write(bytes(2**20))
            file.flush()
    time.sleep(strike.chance.uniform(0.5, 4))
    filler.unlink()


def _lose_message(strike: Strike) -> None:
    """Pop the next message, as a worker that dies before it records the message."""
    workers = []
    for host, kind in product(strike.cluster.hosts, ("cpu", "gpu")):
        with suppress(psutil.NoSuchProcess):  # an earlier fault may have ended the worker
            workers.append(host.worker(kind))
    signal_all("suspend", workers)  # their children run on, and send the next stage
    deadline = time.monotonic() + 30
    while (
        time.monotonic() < deadline
        and not strike.cluster.client.state.get(strike.job_id).status.ended
    ):
        if strike.cluster.redis.rpop("cpu") or strike.cluster.redis.rpop("gpu.40gb"):
            break
        time.sleep(0.05)
    signal_all("resume", workers)


def _poison(strike: Strike) -> None:
    """Send every kind of unreadable message to every queue."""
    for queue in ("cpu", "gpu.40gb", SUBMIT_QUEUE):
        strike.cluster.redis.lpush(queue, *unreadable(queue).values())


def _jump_clock(strike: Strike) -> None:
    """Let the clock of the job's host jump by five minutes, and back again."""
    clock = strike.cluster.host_of(strike.job_id).clock
    clock.write_text(str(strike.chance.choice((-300, 300))))
    sleep(1.5)
    clock.unlink()
    sleep(1.0)


def _make_ready_files_read_only(strike: Strike) -> None:
    host = strike.cluster.host_of(strike.job_id)
    host.remount("ro")
    sleep(2.0)
    host.remount("rw")


def _end_thread(strike: Strike) -> None:
    """End the thread that renews leases: its worker drains, and exits with an error."""
    host, kind = strike.cluster.host_of(strike.job_id), _worker_kind(strike)
    with suppress(psutil.NoSuchProcess):  # an earlier fault may have ended the worker
        host.worker(kind).send_signal(signal.SIGUSR2)
        assert host.exit_code(kind) != 0


def _cancel(strike: Strike) -> None:
    strike.cluster.client.cancel(strike.job_id, "a fault")


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
    Fault("broker unavailable", _stop_broker),
    Fault("broker unavailable for a minute", _stop_broker_for_a_minute, takes_long=True),
    *(Fault(f"broker refuses: {each.code}", _refuse(each), restarts=False) for each in REFUSALS),
    Fault("network cut", _cut),
    Fault("network cut for long", _cut_for_long),
    Fault("network drops packets", _drop_packets),
    Fault("store unavailable", _remove_store),
    Fault("store slow", _slow_store, restarts=False, needs_slow_store=True),
    Fault("disk full", _fill_disk, needs_small_disk=True),
    Fault("delivered twice", _deliver_twice, restarts=False),
    Fault("submitted twice", _submit_twice, restarts=False),
    Fault("checkpoint damaged", _damage_checkpoint, only_train=True),
    Fault("message lost", _lose_message),
    Fault("poison in each queue", _poison, restarts=False),
    Fault("clock jumps", _jump_clock, restarts=False),
    Fault("ready files read-only", _make_ready_files_read_only, restarts=False),
    Fault("thread ends", _end_thread),
    Fault("cancelled", _cancel, restarts=False, cancels=True),
)
