"""The checks of ``training-worker doctor``: broker, store, disks, clock, GPUs, workers, Hub.

Each check reports what it found and what to do. No check stops another, and none changes anything
but probes in the store and the broker.
"""

import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast
from uuid import uuid4

import httpx2
import redis
from redis import Redis

from routing.classes import MemoryClass
from routing.queues import ALL_QUEUES, CPU_QUEUE, INVOKE, SUBMIT_QUEUE, engine_of
from tasks.app import make_app
from tasks.clock import MAX_CLOCK_OFFSET_S, broker_time, clock_offset_s
from tasks.errors import JobError, NoBrokerError, StoreError
from tasks.extras import compiler_problem, is_installed
from tasks.settings.settings import Settings
from tasks.state.availability import RefusedError, check_writes
from tasks.state.broker_url import BrokerUrl
from tasks.state.connection import check_server, connect, connect_sentinels
from tasks.state.control import JobControl
from tasks.state.tenants.tenant_queues import TenantQueues
from tasks.state.workers import WorkerInfo, live_workers
from tasks.store import Store
from worker.gpu.host_memory import host_memory_bytes, memory_shortage
from worker.gpu.inventory import find_gpus, torch_build, why_untrainable
from worker.kombu_redis.transport import Keys
from worker.local.embedded_broker import broker_url
from worker.local.flower import flower_address
from worker.maintenance.finding import Finding, Level, gigabytes
from worker.maintenance.reach import check_console, check_disks, check_hub
from worker.maintenance.reconciler import scan_messages
from worker.message_guard import unreadable_messages
from worker.supervision.engines import find_invoke, invoke_python
from worker.supervision.trainer_pool import ignored_variables

_MIN_REDIS = (6, 2)
_MIN_SENTINELS = 3
_MAX_LATENCY_S = 0.1
_MAX_MEMORY_SHARE = 0.8
_FLOWER_TIMEOUT_S = 2.0
# Live workers return lost messages after one timeout and a round of maintenance.
_LATE_TIMEOUTS = 1.5


def check_all(settings: Settings) -> list[Finding]:
    """Run all checks from this machine."""
    findings = [
        *_check_store(settings),
        *check_disks(settings),
        *_check_scratch(settings),
        *_check_gpus(settings),
        *_check_packages(settings),
        check_hub(),
        *check_console(settings),
    ]
    try:
        url = broker_url(settings)
    except NoBrokerError as error:
        return [Finding("error", "broker", str(error)), *findings]
    broker = BrokerUrl.parse(url)
    findings += _check_sentinels(url)
    try:
        client = connect(url)
        check_server(client, url)
    except NoBrokerError as error:
        if isinstance(refusal := error.__cause__, RefusedError):
            return [Finding("error", "broker", refusal.problem, refusal.remedy), *findings]
        remedy = "start it, or correct TRAINING_BROKER_URL"
        return [Finding("error", "broker", str(error), remedy), *findings]
    keys = Keys.of(make_app(settings, url).conf.broker_transport_options)
    checks: list[Callable[[], Iterator[Finding]]] = [
        lambda: _check_server(client, broker),
        lambda: _check_writes(client),
        lambda: _check_durability(client),
        lambda: _check_clock(client),
        lambda: _check_network(broker),
        lambda: _check_workers(client, settings),
        lambda: _check_leases(client, settings, keys),
        lambda: _check_messages(client, settings, keys),
        lambda: _check_flower(settings),
    ]
    with client:
        for check in checks:
            try:
                findings += check()
            except redis.RedisError as error:
                findings.append(Finding("warning", "broker", f"a check failed: {error}"))
    return findings


def _check_server(client: Redis, broker: BrokerUrl) -> Iterator[Finding]:
    info = client.info()
    name = str(info.get("server_name", "redis"))
    version = str(info.get("valkey_version", info["redis_version"]))
    is_old = tuple(int(part) for part in str(info["redis_version"]).split(".")[:2]) < _MIN_REDIS
    remedy = "install Redis 6.2 or newer, or Valkey" if is_old else ""
    yield Finding("error" if is_old else "ok", "broker", f"{name} {version}", remedy)
    if info.get("role") not in (None, "master"):
        yield Finding("error", "broker role", str(info["role"]), "use the address of the primary")
    if broker.master and "role" in info and "min_slaves_good_slaves" not in info:
        remedy = "set it to 1, or a master that is cut off accepts writes that are lost"
        yield Finding("warning", "broker replication", "min-replicas-to-write is 0", remedy)
    limit, used = int(info.get("maxmemory", 0)), int(info["used_memory"])
    if limit and used > _MAX_MEMORY_SHARE * limit:
        remedy = "raise maxmemory, or shorten TRAINING_JOB_TTL"
        yield Finding(
            "warning", "broker memory", f"{gigabytes(used)} of {gigabytes(limit)} used", remedy
        )
    elif not limit and "maxmemory" in info and not broker.is_local:
        remedy = "set maxmemory to about 60 % of its memory: a full server is killed, and again"
        yield Finding("warning", "broker memory", "no maxmemory", remedy)


def _check_writes(client: Redis) -> Iterator[Finding]:
    """Check that the broker runs a script that writes, as for every change of a job."""
    try:
        check_writes(client)
    except RefusedError as error:
        yield Finding("error", "broker writes", error.problem, error.remedy)
    else:
        yield Finding("ok", "broker writes", "accepted")


def _check_durability(client: Redis) -> Iterator[Finding]:
    """Check that the server neither evicts keys nor forgets them in a crash."""
    info = client.info()
    policy = info.get("maxmemory_policy")
    if policy is None:
        remedy = "make sure that the policy is noeviction"
        yield Finding("warning", "eviction", "the server does not report its policy", remedy)
    elif policy == "noeviction":
        yield Finding("ok", "eviction", "noeviction")
    else:
        remedy = "set maxmemory-policy noeviction: an evicted key is a lost job"
        yield Finding("error", "eviction", str(policy), remedy)
    if info.get("aof_enabled"):
        yield Finding("ok", "persistence", "append-only file")
    elif "aof_enabled" in info:
        remedy = "set appendonly yes: a crash loses all changes since the last snapshot"
        yield Finding("warning", "persistence", "no append-only file", remedy)
    if info.get("aof_last_write_status", "ok") != "ok":
        yield Finding("error", "persistence", "the last write failed", "check the broker's disk")


def _check_clock(client: Redis) -> Iterator[Finding]:
    yield _clock("clock", clock_offset_s(client))
    began = time.monotonic()
    broker_time(client)
    latency_s = time.monotonic() - began
    if latency_s > _MAX_LATENCY_S:
        remedy = "move the broker closer to the workers"
        yield Finding("warning", "broker latency", f"{latency_s:.2f} s", remedy)


def _clock(subject: str, offset_s: float) -> Finding:
    is_wrong = abs(offset_s) > MAX_CLOCK_OFFSET_S
    remedy = "run a time service there: its logs and traces have wrong times" if is_wrong else ""
    found = f"{offset_s:+.1f} s off the broker's"
    return Finding("warning" if is_wrong else "ok", subject, found, remedy)


def _check_network(broker: BrokerUrl) -> Iterator[Finding]:
    if not broker.is_local and not broker.is_tls:
        scheme = "sentinels" if broker.master else "rediss"
        yield Finding("warning", "broker network", "not encrypted", f"use {scheme}://")
    if broker.tls.get("ssl_cert_reqs", "required") != "required":
        remedy = "replace ssl_cert_reqs by ssl_ca_certs with the file of its CA"
        yield Finding("warning", "broker network", "its certificate is not checked", remedy)
    if not broker.is_local and not broker.password:
        remedy = "set a password: every host that reaches the broker controls the fleet"
        yield Finding("warning", "broker network", "no password", remedy)
    if broker.database:
        remedy = "use database 0: the users of deploy/valkey/users.acl.in may use no other"
        yield Finding("warning", "broker database", str(broker.database), remedy)


def _check_sentinels(broker_url: str) -> Iterator[Finding]:
    """Check that a failover would find its majority, and a replica to promote."""
    master, sentinels = BrokerUrl.parse(broker_url).master, connect_sentinels(broker_url)
    reports: list[dict[str, Any]] = []
    for number, sentinel in enumerate(sentinels, start=1):
        try:
            reports.append(cast("dict[str, Any]", sentinel.sentinel_master(master)))
            sentinel.sentinel_ckquorum(master)
        except redis.RedisError as error:
            remedy = "start it, or correct TRAINING_BROKER_URL and TRAINING_BROKER_SENTINEL_MASTER"
            yield Finding("error", f"sentinel {number}", str(error), remedy)
    for report in reports[:1]:
        known, replicas = report["num-other-sentinels"] + 1, report["num-slaves"]
        found = f"master {report['ip']}:{report['port']}, replicas {replicas}, "
        found += f"sentinels {known}, quorum {report['quorum']}"
        remedy = "" if replicas else "add a replica: without one there is no failover"
        if known < _MIN_SENTINELS:
            remedy = "run three sentinels: a failover needs a majority of them"
        yield Finding("warning" if remedy else "ok", "sentinels", found, remedy)


def _check_workers(client: Redis, settings: Settings) -> Iterator[Finding]:
    live = live_workers(client)
    names = ", ".join(sorted(live)) or "none"
    level: Level = "ok" if live else "error"
    yield Finding(level, "workers", names, "" if live else "start them: training-worker up")
    for name, worker in live.items():
        if worker.quarantined is not None:
            yield Finding("error", name, f"quarantined: {worker.quarantined}", "check its GPU")
        if worker.has_wrong_clock:
            yield _clock(f"clock of {name}", worker.clock_offset_s)
    yield from _releases(live)
    served = {q for worker in live.values() if worker.quarantined is None for q in worker.queues}
    in_tenant_queues = TenantQueues(client, settings.job_ttl).waiting()
    for queue in ALL_QUEUES:
        waiting = int(client.llen(queue)) + sum(in_tenant_queues.get(queue, {}).values())
        if waiting and queue not in served:
            on_cpu = queue in (CPU_QUEUE, SUBMIT_QUEUE)
            remedy = "start a CPU worker" if on_cpu else "start a worker of that class"
            if engine_of(queue) == INVOKE:
                remedy += " with this engine: training-worker engines install"
            jobs = f"{waiting} waiting {'job' if waiting == 1 else 'jobs'}"
            yield Finding("error", queue, f"{jobs}, and no live worker serves the queue", remedy)


def _releases(live: Mapping[str, WorkerInfo]) -> Iterator[Finding]:
    """Check that all workers run one release: an older one cannot read jobs of a newer one."""
    by_release: dict[str, list[str]] = {}
    for name, worker in sorted(live.items()):
        by_release.setdefault(worker.release or "unknown", []).append(name)
    if len(by_release) > 1:
        found = "; ".join(f"{release}: {', '.join(names)}" for release, names in by_release.items())
        yield Finding("warning", "releases", found, "upgrade all: see docs/guides/upgrade.md")


def _check_leases(client: Redis, settings: Settings, keys: Keys) -> Iterator[Finding]:
    late_s = _LATE_TIMEOUTS * settings.visibility_timeout.total_seconds()
    late = client.zcount(keys.unacked_index, "-inf", broker_time(client) - late_s)
    if late:
        remedy = "a live worker redelivers them within a minute; if none does, read its log"
        yield Finding("warning", "leases", f"{late} held by lost workers", remedy)
    else:
        yield Finding("ok", "leases", f"{client.hlen(keys.unacked)} held, all renewed")


def _check_messages(client: Redis, settings: Settings, keys: Keys) -> Iterator[Finding]:
    found = scan_messages(client, keys)
    unreadable = Counter(message.queue for message, _ in found.unreadable)
    unreadable.update(m.queue for m in unreadable_messages(client, settings.job_ttl))
    if unreadable:
        counts = ", ".join(f"{count} in {queue}" for queue, count in sorted(unreadable.items()))
        remedy = "see training-worker unreadable list, and find their sender"
        yield Finding("warning", "unreadable", counts, remedy)
    lost = [
        job.id
        for job in JobControl(client, settings.job_ttl).summaries_in_flight()
        if (job.id, job.stage) not in found.stages
    ]
    if lost:
        remedy = "a live worker sends them again within two minutes"
        yield Finding("warning", "jobs", f"no message for {', '.join(lost[:10])}", remedy)


def _check_flower(settings: Settings) -> Iterator[Finding]:
    if not settings.flower_port:
        return
    try:
        httpx2.get(flower_address(settings), timeout=_FLOWER_TIMEOUT_S)
        yield Finding("ok", "Flower", f"answers at {flower_address(settings)}")
    except httpx2.HTTPError:
        yield Finding("ok", "Flower", "does not run on this machine")


def _check_store(settings: Settings) -> Iterator[Finding]:
    key, data = f"doctor/{uuid4().hex}", b"a probe"
    try:
        store = Store(settings.resolved_store_url)
        store.put(key, data)
        is_same, is_kept = store.get(key) == data, not store.put_if_absent(key, b"another")
        store.delete([key])
    except StoreError as error:
        yield Finding("error", "store", str(error), "grant read, write and delete")
        return
    if not is_same:
        yield Finding("error", "store", "returns other bytes than were written", "replace it")
    elif not is_kept:
        remedy = "use a store with conditional writes, or a job could be published twice"
        yield Finding("error", "store", "overwrites objects that must be kept", remedy)
    else:
        yield Finding("ok", "store", "reads, writes once and deletes")


def _check_scratch(settings: Settings) -> Iterator[Finding]:
    folder = settings.resolved_scratch_dir
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f"doctor-{uuid4().hex}"
        probe.write_bytes(b"a probe")
        probe.unlink()
    except OSError as error:
        yield Finding("error", "scratch", str(error), "correct TRAINING_SCRATCH_DIR")
        return
    yield _disk_space(folder, int(settings.data_max_bytes))


def _disk_space(folder: Path, max_dataset_bytes: int) -> Finding:
    free = shutil.disk_usage(folder).free
    found = f"{gigabytes(free)} free in {folder}"
    needed = f"{gigabytes(2 * max_dataset_bytes)}, twice TRAINING_DATA_MAX_BYTES"
    if free < 2 * max_dataset_bytes:
        remedy = f"free {needed}: that is what the largest dataset takes"
        return Finding("warning", "scratch", found, remedy)
    return Finding("ok", "scratch", f"{found}; the largest dataset takes {needed}")


def _check_gpus(settings: Settings) -> Iterator[Finding]:
    try:
        gpus = find_gpus(settings.gpus, settings.cuda_visible_devices)
    except JobError as error:
        yield Finding("error", "GPUs", str(error))
        return
    if not gpus:
        yield Finding("warning", "GPUs", "none", "an emulated GPU trains on the CPU")
    for gpu in gpus:
        if gpu.problem is not None:
            remedy = "reset the GPU, or restart the machine"
            yield Finding("error", "GPU", f"{gpu.name}: {gpu.problem}", remedy)
        elif (unsupported := why_untrainable(gpu)) is not None:
            remedy = "its worker takes no jobs; see docs/guides/capacity.md#gpus"
            yield Finding("error", "GPU", f"{gpu.name}: {unsupported}", remedy)
        elif gpu.memory_class is None:
            found = f"{gpu.name}: {gpu.memory_mib} MiB"
            yield Finding("warning", "GPU", found, "below the smallest class: it gets no jobs")
        else:
            yield Finding("ok", "GPU", f"{gpu.name}: class {gpu.memory_class}")
    # Emulated GPUs train tiny models and need little system memory.
    classes = [gpu.memory_class for gpu in gpus if not gpu.emulated and gpu.memory_class]
    if gpus:
        yield _compiler(cuda=bool(classes))
    if classes:
        yield _system_memory(max(classes), host_memory_bytes())
        yield from _check_cuda()


def _compiler(*, cuda: bool) -> Finding:
    problem = compiler_problem(cuda=cuda)
    if problem is None:
        return Finding("ok", "compiler", "is installed")
    return Finding("warning", "compiler", problem, "jobs with compile: true are refused until then")


def _check_cuda() -> Iterator[Finding]:
    """Check what trainers on this machine's GPUs compute with."""
    build = torch_build()
    if build is not None and build.cuda is None:
        remedy = "install a build of PyTorch for CUDA"
        yield Finding("error", "PyTorch", "built for the CPU: GPUs cannot be used", remedy)
    for name, reason in ignored_variables(os.environ).items():
        yield Finding("warning", name, f"is set, and trainers ignore it: {reason}", "unset it")


def _system_memory(memory_class: MemoryClass, total_bytes: int) -> Finding:
    problem = memory_shortage(memory_class, total_bytes)
    if problem is None:
        return Finding("ok", "system memory", gigabytes(total_bytes))
    remedy = "add memory, or serve the queues of smaller classes only (worker --queues)"
    return Finding("warning", "system memory", problem, remedy)


def _check_packages(settings: Settings) -> Iterator[Finding]:
    if not is_installed("torch"):
        remedy = "pip install 'training-worker[train]' on machines of GPU workers"
        yield Finding("warning", "trainer", "PyTorch is not installed", remedy)
    else:
        yield Finding("ok", "trainer", "PyTorch is installed")
    python = invoke_python(settings)
    if python is None:
        remedy = "only jobs of this engine need it: training-worker engines install"
        yield Finding("ok", f"engine {INVOKE}", "not installed", remedy)
        return
    invoke = find_invoke(python)
    if invoke.is_usable:
        yield Finding("ok", f"engine {INVOKE}", f"version {invoke.versions[INVOKE]}")
    for problem in invoke.problems:
        yield Finding("error", f"engine {INVOKE}", problem, invoke.remedy)
