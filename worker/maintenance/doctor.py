"""What ``training-worker doctor`` looks at: broker, store, clock, GPUs, workers, leases.

Each check says what it found and what to do; none stops another, and none changes anything but a
probe object of its own in the store.
"""

import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from importlib.util import find_spec
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit
from uuid import uuid4

import httpx2
import redis
from redis import Redis

from routing.classes import MemoryClass
from routing.engines import INVOKE
from routing.queues import ALL_QUEUES, CPU_QUEUE, engine_of
from tasks.app import make_app
from tasks.errors import JobError, StoreError
from tasks.settings.settings import Settings
from tasks.state.connection import connect
from tasks.state.control import JobControl
from tasks.state.tenant_queues import TenantQueues
from tasks.state.workers import live_workers
from tasks.store import Store
from worker.cli.client import broker_url
from worker.gpu.host_memory import host_memory_bytes, memory_shortage
from worker.gpu.inventory import find_gpus
from worker.kombu_redis.transport import Keys
from worker.local.flower import flower_address
from worker.maintenance.reconciler import messages
from worker.supervision.engines import find_invoke

Level = Literal["ok", "warning", "fault"]

_LEAST_REDIS = (6, 2)
_CLOCK_OFF_S = 1.0
_SLOW_S = 0.1
_SOON_S = 2.0


@dataclass(frozen=True)
class Finding:
    """What a check found.

    Attributes:
        level: ``fault``: jobs cannot run, or could be lost.
        what: What was looked at.
        found: What is so.
        remedy: What to do about it.
    """

    level: Level
    what: str
    found: str
    remedy: str = ""


def check_all(settings: Settings) -> list[Finding]:
    """Look at everything, from this machine."""
    findings = [*_store(settings), *_scratch(settings), *_gpus(settings), *_packages(settings)]
    try:
        url = broker_url(settings)
        client = connect(url)
        client.ping()
    except JobError as error:
        return [Finding("fault", "broker", str(error)), *findings]
    except redis.RedisError as error:
        remedy = "start it, or mend TRAINING_BROKER_URL"
        return [Finding("fault", "broker", f"does not answer: {error}", remedy), *findings]
    keys = Keys.of(make_app(settings, url).conf.broker_transport_options)
    checks: list[Callable[[], Iterator[Finding]]] = [
        lambda: _server(client),
        lambda: _eviction_and_persistence(client),
        lambda: _clock(client, settings.visibility_timeout),
        lambda: _network(url),
        lambda: _workers(client, settings),
        lambda: _leases(client, settings, keys),
        lambda: _flower(settings),
    ]
    with client:
        for check in checks:
            try:
                findings += check()
            except redis.RedisError as error:
                findings.append(Finding("warning", "broker", f"could not be asked: {error}"))
    return findings


def _server(client: Redis) -> Iterator[Finding]:
    info = client.info()
    name = str(info.get("server_name", "redis"))
    version = str(info.get("valkey_version", info["redis_version"]))
    old = tuple(int(part) for part in str(info["redis_version"]).split(".")[:2]) < _LEAST_REDIS
    remedy = "Redis 6.2 or newer, or Valkey, is needed" if old else ""
    yield Finding("fault" if old else "ok", "broker", f"{name} {version}", remedy)
    if info.get("role") not in (None, "master"):
        yield Finding("fault", "broker role", str(info["role"]), "name the primary")
    most, used = int(info.get("maxmemory", 0)), int(info["used_memory"])
    if most and used > 0.8 * most:
        found = f"{used:,} of {most:,} bytes"
        yield Finding(
            "warning", "broker memory", found, "give it more, or shorten TRAINING_JOB_TTL"
        )


def _eviction_and_persistence(client: Redis) -> Iterator[Finding]:
    info = client.info()
    policy = info.get("maxmemory_policy")
    if policy is None:
        yield Finding("warning", "eviction", "the server does not say", "see that it is noeviction")
    elif policy == "noeviction":
        yield Finding("ok", "eviction", "noeviction")
    else:
        remedy = "set maxmemory-policy noeviction: an evicted key is a lost job"
        yield Finding("fault", "eviction", str(policy), remedy)
    if info.get("aof_enabled"):
        yield Finding("ok", "persistence", "append-only file")
    elif "aof_enabled" in info:
        remedy = "set appendonly yes: after a crash the server forgets what came since its snapshot"
        yield Finding("warning", "persistence", "snapshots at the most", remedy)
    if info.get("aof_last_write_status", "ok") != "ok":
        yield Finding("fault", "persistence", "its last write failed", "look at its disk")


def _clock(client: Redis, timeout: timedelta) -> Iterator[Finding]:
    began = time.time()
    seconds, microseconds = client.time()
    took = time.time() - began
    off = abs(began + took / 2 - (seconds + microseconds / 1e6)) - took / 2
    level: Level = "ok"
    if off > _CLOCK_OFF_S:
        level = "fault" if off > timeout.total_seconds() / 4 else "warning"
    remedy = "" if level == "ok" else "run a time service: leases are timed by workers' clocks"
    yield Finding(level, "clock", f"{max(off, 0):.2f} s off the broker's", remedy)
    if took > _SLOW_S:
        yield Finding("warning", "broker latency", f"{took:.2f} s", "bring it closer")


def _network(url: str) -> Iterator[Finding]:
    parts = urlsplit(url)
    local = parts.hostname in (None, "localhost", "127.0.0.1", "::1")
    if not local and parts.scheme != "rediss":
        yield Finding("warning", "broker network", "not encrypted", "use rediss://")
    if "ssl_cert_reqs=none" in parts.query.lower():
        remedy = "name its CA by ssl_ca_certs instead of ssl_cert_reqs=none"
        yield Finding("warning", "broker network", "its certificate is not checked", remedy)
    if not local and not parts.password:
        yield Finding(
            "warning", "broker network", "no password", "whoever reaches it owns the fleet"
        )


def _workers(client: Redis, settings: Settings) -> Iterator[Finding]:
    live = live_workers(client)
    names = ", ".join(sorted(live)) or "none"
    level: Level = "ok" if live else "warning"
    yield Finding(level, "workers", names, "" if live else "start them: training-worker up")
    for name, worker in live.items():
        if worker.quarantined is not None:
            yield Finding("fault", name, f"quarantined: {worker.quarantined}", "look at its GPU")
    served = {q for worker in live.values() if worker.quarantined is None for q in worker.queues}
    in_lanes = TenantQueues(client, settings.job_ttl).waiting()
    for queue in ALL_QUEUES:
        waiting = int(client.llen(queue)) + sum(in_lanes.get(queue, {}).values())
        if waiting and queue not in served:
            remedy = "start a worker of that class" if queue != CPU_QUEUE else "start a CPU worker"
            if engine_of(queue) == INVOKE:
                remedy += " with TRAINING_INVOKE_PYTHON set"
            yield Finding("fault", queue, f"{waiting} jobs wait and no live worker serves", remedy)


def _leases(client: Redis, settings: Settings, keys: Keys) -> Iterator[Finding]:
    timeout_s = settings.visibility_timeout.total_seconds()
    late = client.zcount(keys.unacked_index, "-inf", time.time() - 1.5 * timeout_s)
    if late:
        remedy = "any live worker gives them back within a minute; where none does, read its log"
        yield Finding("warning", "leases", f"{late} messages of lost workers", remedy)
    else:
        yield Finding("ok", "leases", f"{client.hlen(keys.unacked)} held, all renewed")
    there = set(messages(client, keys))
    lost = [
        job.id
        for job in JobControl(client, settings.job_ttl).summaries_in_flight()
        if (job.id, job.stage) not in there
    ]
    if lost:
        remedy = "a live worker sends them again within two minutes"
        yield Finding("warning", "jobs", f"no message for {', '.join(lost[:10])}", remedy)


def _flower(settings: Settings) -> Iterator[Finding]:
    if not settings.flower_port:
        return
    try:
        httpx2.get(flower_address(settings), timeout=_SOON_S)
        yield Finding("ok", "Flower", f"answers at {flower_address(settings)}")
    except httpx2.HTTPError:
        yield Finding("ok", "Flower", "is not running here")


def _store(settings: Settings) -> Iterator[Finding]:
    key, data = f"doctor/{uuid4().hex}", b"a probe"
    try:
        store = Store(settings.resolved_store_url)
        store.put(key, data)
        same, once = store.get(key) == data, not store.put_if_absent(key, b"another")
        store.delete([key])
    except StoreError as error:
        yield Finding("fault", "store", str(error), "grant read, write and delete")
        return
    if not same:
        yield Finding("fault", "store", "gives back other bytes than it was given")
    elif not once:
        remedy = "use a store with conditional writes, or a job could be published twice"
        yield Finding("fault", "store", "writes over what is there", remedy)
    else:
        yield Finding("ok", "store", "reads, writes once and deletes")


def _scratch(settings: Settings) -> Iterator[Finding]:
    folder = settings.resolved_scratch_dir
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f"doctor-{uuid4().hex}"
        probe.write_bytes(b"a probe")
        probe.unlink()
    except OSError as error:
        yield Finding("fault", "scratch", str(error), "mend TRAINING_SCRATCH_DIR")
        return
    yield _room(folder, int(settings.data_max_bytes))


def _room(folder: Path, wanted: int) -> Finding:
    free = shutil.disk_usage(folder).free
    found = f"{free:,} bytes free in {folder}"
    if free < 2 * wanted:
        remedy = "the largest dataset that TRAINING_DATA_MAX_BYTES allows takes twice its size"
        return Finding("warning", "scratch", found, remedy)
    return Finding("ok", "scratch", found)


def _gpus(settings: Settings) -> Iterator[Finding]:
    try:
        gpus = find_gpus(settings.gpus, settings.cuda_visible_devices)
    except JobError as error:
        yield Finding("fault", "GPUs", str(error))
        return
    if not gpus:
        yield Finding("warning", "GPUs", "none", "an emulated one computes on the CPU")
    for gpu in gpus:
        if gpu.problem is not None:
            yield Finding("fault", "GPU", f"{gpu.name}: {gpu.problem}", "reset it, or the machine")
        elif gpu.memory_class is None:
            found = f"{gpu.name}: {gpu.memory_mib} MiB"
            yield Finding("warning", "GPU", found, "below the smallest class; it gets no jobs")
        else:
            yield Finding("ok", "GPU", f"{gpu.name}: class {gpu.memory_class}")
    # Emulated ones train tiny models.
    classes = [gpu.memory_class for gpu in gpus if not gpu.emulated and gpu.memory_class]
    if classes:
        yield _system_memory(max(classes), host_memory_bytes())


def _system_memory(memory_class: MemoryClass, total_bytes: int) -> Finding:
    problem = memory_shortage(memory_class, total_bytes)
    if problem is None:
        return Finding("ok", "system memory", f"{total_bytes:,} bytes")
    remedy = "add memory, or serve the queues of smaller classes only (worker --queues)"
    return Finding("warning", "system memory", problem, remedy)


def _packages(settings: Settings) -> Iterator[Finding]:
    if find_spec("torch") is None:
        remedy = "pip install 'training-worker[train]' where GPU workers run"
        yield Finding("warning", "trainer", "PyTorch is not installed", remedy)
    else:
        yield Finding("ok", "trainer", "PyTorch is installed")
    if settings.invoke_python is None:
        guide = "docs/guides/invoke-training.md tells how; it is needed by no other job"
        yield Finding("ok", f"engine {INVOKE}", "not set up here", guide)
        return
    invoke = find_invoke(settings.invoke_python)
    if invoke.is_usable:
        yield Finding("ok", f"engine {INVOKE}", f"version {invoke.versions[INVOKE]}")
    for problem in invoke.problems:
        yield Finding("fault", f"engine {INVOKE}", problem, invoke.remedy)
