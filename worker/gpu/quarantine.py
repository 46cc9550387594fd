"""GPU health: a gate before each GPU stage, and a quarantine for a worker whose GPU is unhealthy.

The gate runs in the pool's child, before a stage begins. If the GPU is unhealthy, the child reports
it to the worker's parent process, which takes no more messages until the GPU recovers; the stage
returns to its queue for another worker. Three things end the worker's service until an operator
restarts it: an error of the driver (XID) that no application caused, a second failure of the GPU
within a day while it computed, and a GPU on which PyTorch cannot train.
"""

import json
import logging
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from routing.classes import MIB
from tasks.stages.worker_context import GpuUnhealthy
from worker.gpu.inventory import Gpu, torch_build, why_unsupported
from worker.gpu.nvml import DriverError, XidListener
from worker.periodic import PeriodicThread, ThreadWatch
from worker.policy import WorkerPolicy

logger = logging.getLogger(__name__)

# A driver whose card failed may never answer.
_DRIVER_TIMEOUT_S = 30.0
_POLL_EVERY_S = 1.0
_RECHECK_EVERY_S = 10.0
# Longer than the parent needs to receive a report and to stop taking messages.
_PARENT_REACTS_WITHIN_S = 3 * _POLL_EVERY_S
_REMEDY = "check the GPU, then restart the worker"
# One failure may be a job's; a second one is taken for the card's.
_MAX_FAILURES = 2
_FAILURES_WITHIN_S = 24 * 3600.0
_MAX_REASON = 1000
_PIPE_BYTES = 65536  # what Linux holds in a pipe
# The first process-id namespace of a machine; only there do ids match the driver's.
_HOST_PID_NAMESPACE = "pid:[4026531836]"


@dataclass(frozen=True)
class GpuFault:
    """Why a GPU could not take a job.

    Attributes:
        reason: For people.
        needed_mib: The memory that the job needed.
        in_computation: Whether it failed while a job computed on it.
    """

    reason: str
    needed_mib: int = 0
    in_computation: bool = False


class GpuFaultPipe:
    """A pipe for faults from the pool's child to its parent. Make it before the fork."""

    def __init__(self) -> None:
        self._read_fd, self._write_fd = os.pipe()

    def send(self, fault: GpuFault) -> None:
        """Report a fault. Called in the child."""
        document = {**asdict(fault), "reason": fault.reason[:_MAX_REASON]}
        os.write(self._write_fd, json.dumps(document).encode() + b"\n")

    def send_and_wait(self, fault: GpuFault) -> None:
        """Report a fault, and wait until the parent takes no more messages because of it."""
        self.send(fault)
        time.sleep(_PARENT_REACTS_WITHIN_S)

    def receive(self, timeout_s: float) -> list[GpuFault]:
        """Return the faults that have arrived, or the next one. Called in the parent."""
        ready, _, _ = select.select([self._read_fd], [], [], timeout_s)
        lines = os.read(self._read_fd, _PIPE_BYTES).splitlines() if ready else []
        return [GpuFault(**json.loads(line)) for line in lines]


def make_gate(
    gpu: Gpu | None, faults: GpuFaultPipe, close_trainer: Callable[[], None]
) -> Callable[[float], None]:
    """Return the gate that ``WorkerContext.check_gpu`` is for a GPU.

    Args:
        gpu: The GPU; None without a real one: that gate lets every job through.
        faults: Takes faults to the parent.
        close_trainer: Frees the memory that an idle trainer of this process holds.
    """
    if gpu is None:
        return lambda _needed_gib: None
    uuid = gpu.uuid

    def check(needed_gib: float) -> None:
        needed_mib = int(needed_gib * 1024)
        own = {process.pid for process in psutil.Process().children(recursive=True)}
        reason = why_unhealthy(uuid, needed_mib, own)
        if reason is not None and own:
            close_trainer()
            reason = why_unhealthy(uuid, needed_mib, set())
        if reason is None:
            return
        faults.send_and_wait(GpuFault(reason, needed_mib))
        raise GpuUnhealthy(reason)

    return check


def report_failure(faults: GpuFaultPipe, reason: str) -> None:
    """Report that the GPU failed while it computed. Called in the child."""
    faults.send_and_wait(GpuFault(reason, in_computation=True))


def why_unhealthy(uuid: str, needed_mib: int, own: set[int]) -> str | None:
    """Return why a GPU cannot take a job now; None if it can.

    Queries the driver in a separate process: NVML does not survive a fork, and a driver may hang.

    Args:
        uuid: The GPU's.
        needed_mib: The memory that the job needs.
        own: Ids of the processes whose memory the job will get.
    """
    command = [sys.executable, "-P", "-m", "worker.gpu.nvml"]
    try:
        query = subprocess.run(
            command, capture_output=True, text=True, timeout=_DRIVER_TIMEOUT_S, check=True
        )
    except subprocess.TimeoutExpired:
        return f"the driver does not answer within {_DRIVER_TIMEOUT_S:g} s"
    except subprocess.CalledProcessError as error:
        return str(error.stderr).strip()
    devices = json.loads(query.stdout)
    device = next((device for device in devices if device["uuid"] == uuid), None)
    if device is None:
        return f"the driver no longer reports GPU {uuid}"
    unsupported = why_unsupported(device["compute_capability"], torch_build())
    return unsupported or _why_unusable(device, needed_mib, own)


class GpuQuarantine(WorkerPolicy):
    """Keeps a worker from taking messages while its GPU is unhealthy.

    Args:
        gpu: The worker's.
        unsupported: Why it cannot train at all; None if it can.
        faults: Faults from the pool's child.
        on_change: Called with the reason when a quarantine begins or its reason changes, and with
            None when it ends.
        on_permanent: Called when it will not end, so that the running job is released.
        watch: Watches the thread.
    """

    def __init__(
        self,
        gpu: Gpu,
        unsupported: str | None,
        faults: GpuFaultPipe,
        on_change: Callable[[str | None], None],
        on_permanent: Callable[[], None],
        watch: ThreadWatch,
    ) -> None:
        self._gpu, self._faults, self._unsupported = gpu, faults, unsupported
        self._on_change, self._on_permanent = on_change, on_permanent
        self._consumer: Any = None
        self._queues: list[str] = []
        self._fault: GpuFault | None = None
        self._recheck_at = 0.0
        self._failed_at: list[float] = []
        self._watch = watch
        self._xids: XidListener | None = None
        # A round waits for a fault by itself.
        self._thread = PeriodicThread(watch, "gpu-quarantine", 0, self._run_round)

    def on_consumer_start(self, consumer: Any) -> None:
        """Watch the GPU from now on; a reconnection changes nothing."""
        is_first = self._consumer is None
        self._consumer = consumer
        if not is_first:
            return
        self._queues = list(consumer.app.amqp.queues.consume_from)
        if self._unsupported is not None:
            self._begin_for_good(self._unsupported)
            return
        self._xids = self._xid_listener()
        self._thread.start()

    def stats(self) -> dict[str, Any]:
        """Return the GPU and its quarantine."""
        return {
            "gpu": {
                "uuid": self._gpu.uuid,
                "name": self._gpu.name,
                "memory_bytes": self._gpu.memory_mib * MIB,
                "memory_class": str(self._gpu.memory_class),
                "quarantined": None if self._fault is None else self._fault.reason,
            }
        }

    def _run_round(self) -> None:
        faults = self._faults.receive(_POLL_EVERY_S)
        xid = _poll(self._xids)
        failures = [fault for fault in faults if fault.in_computation]
        if xid is not None:
            self._begin_for_good(f"the driver reported XID {xid}; {_REMEDY}")
        elif self._are_too_many(failures):
            problem = "it failed twice within a day while it computed"
            self._begin_for_good(f"{problem}: {failures[-1].reason}; {_REMEDY}")
        elif len(failures) < len(faults):
            self._begin(next(fault for fault in reversed(faults) if not fault.in_computation))
        elif self._fault is not None and time.monotonic() >= self._recheck_at:
            self._recheck(self._fault)

    def _are_too_many(self, failures: list[GpuFault]) -> bool:
        now = time.monotonic()
        for failure in failures:
            logger.error("GPU %s failed while it computed: %s", self._gpu.uuid, failure.reason)
            self._failed_at.append(now)
        self._failed_at = [at for at in self._failed_at if now - at < _FAILURES_WITHIN_S]
        return len(self._failed_at) >= _MAX_FAILURES

    def _begin_for_good(self, reason: str) -> None:
        self._begin(GpuFault(reason))
        self._on_permanent()
        self._thread.stop()

    def _begin(self, fault: GpuFault) -> None:
        logger.error("GPU %s is quarantined: %s", self._gpu.uuid, fault.reason)
        for queue in self._queues:
            self._consumer.call_soon(self._consumer.cancel_task_queue, queue)
        self._recheck_at = time.monotonic() + _RECHECK_EVERY_S
        self._set_fault(fault)

    def _recheck(self, fault: GpuFault) -> None:
        self._recheck_at = time.monotonic() + _RECHECK_EVERY_S
        reason = why_unhealthy(self._gpu.uuid, fault.needed_mib, set())
        if reason is None:
            self._end()
        elif reason != fault.reason:
            self._set_fault(GpuFault(reason, fault.needed_mib))

    def _end(self) -> None:
        logger.warning("GPU %s is healthy again", self._gpu.uuid)
        for queue in self._queues:
            self._consumer.call_soon(self._consumer.add_task_queue, queue)
        self._set_fault(None)

    def _set_fault(self, fault: GpuFault | None) -> None:
        self._fault = fault
        reason = None if fault is None else fault.reason
        self._watch.attempt("registration", lambda: self._on_change(reason))

    def _xid_listener(self) -> XidListener | None:
        try:
            return XidListener(self._gpu.uuid)
        except DriverError as error:
            logger.warning("cannot receive the driver's errors: %s", error)
            return None


def _poll(xids: XidListener | None) -> int | None:
    try:
        return xids.poll() if xids is not None else None
    except DriverError as error:
        logger.warning("cannot receive the driver's errors: %s", error)
        return None


def _why_unusable(device: dict[str, Any], needed_mib: int, own: set[int]) -> str | None:
    held_mib = {int(pid): mib or 0 for pid, mib in device["processes"].items()}
    if _pid_namespace() != _HOST_PID_NAMESPACE:
        # In a container, process ids do not match the driver's. While a trainer is kept, all memory
        # in use counts as its memory: it passed this gate before it started.
        if len(held_mib) > 1 and own:
            return f"it is used by {len(held_mib)} processes, and this worker has one"
        return None if own else _memory_fault(device["free_mib"], needed_mib, len(held_mib))
    foreign = sorted(held_mib.keys() - own)
    if foreign:
        return f"it is used by process {', '.join(map(str, foreign))}, which is not this worker's"
    return _memory_fault(device["free_mib"] + sum(held_mib.values()), needed_mib, len(held_mib))


def _pid_namespace() -> str:
    return str(Path("/proc/self/ns/pid").readlink())


def _memory_fault(free_mib: int, needed_mib: int, processes: int) -> str | None:
    if free_mib >= needed_mib:
        return None
    unexplained = "" if processes else ", and the driver reports no process that holds the rest"
    return f"{free_mib} MiB are free and the job needs {needed_mib}{unexplained}"
