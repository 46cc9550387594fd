"""A GPU that is not fit for work gets none: a gate before each GPU stage, and a quarantine.

The gate is asked in the pool's child, before a stage's work begins. Where the GPU is not fit, the
child tells the worker's parent process, which takes no more messages until it is; the stage goes
back to its queue for another worker. The parent also hears the driver's own errors (XIDs): a GPU
that had one that is no application's fault stays out until its worker is started anew.
"""

import json
import logging
import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
from celery import bootsteps

from routing.classes import MIB
from tasks.stages.worker_context import GpuUnhealthy
from worker.gpu.inventory import Gpu
from worker.gpu.nvml import DriverError, XidListener

logger = logging.getLogger(__name__)

# A driver whose card has died may never answer.
_ANSWER_WITHIN_S = 30.0
_LISTEN_S = 1.0
_LOOK_AGAIN_S = 10.0
# Longer than the parent needs to hear of it and to stop taking messages.
_PARENT_ACTS_WITHIN_S = 3 * _LISTEN_S
_LONGEST_REPORT = 4096  # a pipe takes this much at once or not at all
# The first process-id namespace of a machine; only there are ids those that the driver tells.
_HOST_PID_NAMESPACE = "pid:[4026531836]"


class GpuFaultPipe:
    """A pipe from the pool's child to its parent; make it before the fork."""

    def __init__(self) -> None:
        self._read_fd, self._write_fd = os.pipe()

    def send(self, reason: str, needed_mib: int) -> None:
        """Called in the child."""
        line = json.dumps({"reason": reason[:1000], "needed_mib": needed_mib}) + "\n"
        os.write(self._write_fd, line.encode())

    def receive(self, timeout_s: float) -> tuple[str, int] | None:
        """Called in the parent: the newest report; None where none comes within this time."""
        ready, _, _ = select.select([self._read_fd], [], [], timeout_s)
        if not ready:
            return None
        report = json.loads(os.read(self._read_fd, _LONGEST_REPORT).splitlines()[-1])
        return report["reason"], report["needed_mib"]


def make_gate(
    gpu: Gpu | None, reports: GpuFaultPipe, end_kept_trainer: Callable[[], None]
) -> Callable[[float], None]:
    """What ``Runtime.check_gpu`` is for a GPU.

    Args:
        gpu: The GPU; None where it is emulated, or there is none.
        reports: To the parent.
        end_kept_trainer: Frees the memory that an idle trainer of this process holds.
    """
    if gpu is None:
        return lambda _needed_gib: None
    uuid = gpu.uuid

    def check(needed_gib: float) -> None:
        needed_mib = int(needed_gib * 1024)
        own = {process.pid for process in psutil.Process().children(recursive=True)}
        reason = why_unfit(uuid, needed_mib, own)
        if reason is not None and own:
            end_kept_trainer()
            reason = why_unfit(uuid, needed_mib, set())
        if reason is None:
            return
        reports.send(reason, needed_mib)
        time.sleep(_PARENT_ACTS_WITHIN_S)
        raise GpuUnhealthy(reason)

    return check


def why_unfit(uuid: str, needed_mib: int, own: set[int]) -> str | None:
    """Why a GPU cannot take a job now; None where it can.

    Asks a process of its own: NVML does not survive a fork, and a driver may hang.

    Args:
        uuid: The GPU's.
        needed_mib: What the job needs.
        own: Ids of the processes whose memory the job will have.
    """
    command = [sys.executable, "-P", "-m", "worker.gpu.nvml"]
    try:
        asked = subprocess.run(
            command, capture_output=True, text=True, timeout=_ANSWER_WITHIN_S, check=True
        )
    except subprocess.TimeoutExpired:
        return f"the driver does not answer within {_ANSWER_WITHIN_S:g} s"
    except subprocess.CalledProcessError as error:
        return str(error.stderr).strip()
    device = next((it for it in json.loads(asked.stdout) if it["uuid"] == uuid), None)
    if device is None:
        return f"the driver knows no GPU {uuid} any more"
    return _judged(device, needed_mib, own)


def _judged(device: dict[str, Any], needed_mib: int, own: set[int]) -> str | None:
    held = {int(pid): mib or 0 for pid, mib in device["processes"].items()}
    if _pid_namespace() != _HOST_PID_NAMESPACE:
        # A container: nobody can tell whose process is whose. What is held while a trainer is kept
        # counts as that trainer's, which passed this gate before it was started.
        return None if own else _memory_fault(device["free_mib"], needed_mib, len(held))
    foreign = sorted(held.keys() - own)
    if foreign:
        return f"it is used by process {', '.join(map(str, foreign))}, which is not this worker's"
    return _memory_fault(device["free_mib"] + sum(held.values()), needed_mib, len(held))


def _pid_namespace() -> str:
    return str(Path("/proc/self/ns/pid").readlink())


def _memory_fault(free_mib: int, needed_mib: int, processes: int) -> str | None:
    if free_mib >= needed_mib:
        return None
    by = "" if processes else ", and no process is told to hold the rest"
    return f"{free_mib} MiB are free and the job needs {needed_mib}{by}"


class Quarantine(bootsteps.StartStopStep):  # type: ignore[misc]
    """Keeps a worker from taking messages for as long as its GPU is not fit.

    Add what ``of`` gives to the application's ``steps["consumer"]``.
    """

    gpu: Gpu
    reports: GpuFaultPipe
    on_change: Callable[[str | None], None]
    on_lasting: Callable[[], None]

    requires = ("celery.worker.consumer.tasks:Tasks",)

    def __init__(self, consumer: Any, **options: Any) -> None:
        super().__init__(consumer, **options)
        self._consumer: Any = None
        self._queues: list[str] = []
        self._reason: str | None = None

    @classmethod
    def of(
        cls,
        gpu: Gpu,
        reports: GpuFaultPipe,
        on_change: Callable[[str | None], None],
        on_lasting: Callable[[], None],
    ) -> type["Quarantine"]:
        """The step for one GPU.

        Args:
            gpu: The worker's.
            reports: From the pool's child.
            on_change: Called with the reason when it begins, with None when it is over.
            on_lasting: Called where it will not end: what runs is to be handed to others.
        """
        attributes = {
            "gpu": gpu,
            "reports": reports,
            "on_change": staticmethod(on_change),
            "on_lasting": staticmethod(on_lasting),
        }
        return type(cls.__name__, (cls,), attributes)

    def start(self, consumer: Any) -> None:
        """Watch from now on; a reconnection changes nothing."""
        first = self._consumer is None
        self._consumer = consumer
        if first:
            self._queues = list(consumer.app.amqp.queues.consume_from)
            threading.Thread(target=self._watch, name="gpu-watch", daemon=True).start()

    def info(self, consumer: Any) -> dict[str, Any]:
        """What Celery's ``inspect stats``, and Flower with it, shows of the GPU."""
        return {
            "gpu": {
                "uuid": self.gpu.uuid,
                "name": self.gpu.name,
                "memory_bytes": self.gpu.memory_mib * MIB,
                "memory_class": str(self.gpu.memory_class),
                "quarantined": self._reason,
            }
        }

    def _watch(self) -> None:
        xids = self._listener()
        while True:
            report = self.reports.receive(_LISTEN_S)
            xid = _heard(xids)
            if xid is not None:
                self._begin(f"the driver reported XID {xid}; look at it, then restart the worker")
                self.on_lasting()
                return
            if report is not None:
                reason, needed_mib = report
                self._begin(reason)
                look_at = time.monotonic() + _LOOK_AGAIN_S
            elif self._reason is not None and time.monotonic() >= look_at:
                look_at = time.monotonic() + _LOOK_AGAIN_S
                still = why_unfit(self.gpu.uuid, needed_mib, set())
                if still is None:
                    self._end()
                elif still != self._reason:
                    self._reason = still
                    self.on_change(still)

    def _listener(self) -> XidListener | None:
        try:
            return XidListener(self.gpu.uuid)
        except DriverError as error:
            logger.warning("the driver's errors cannot be heard: %s", error)
            return None

    def _begin(self, reason: str) -> None:
        logger.error("GPU %s is quarantined: %s", self.gpu.uuid, reason)
        self._reason = reason
        for queue in self._queues:
            self._consumer.call_soon(self._consumer.cancel_task_queue, queue)
        self.on_change(reason)

    def _end(self) -> None:
        logger.warning("GPU %s is fit again", self.gpu.uuid)
        self._reason = None
        for queue in self._queues:
            self._consumer.call_soon(self._consumer.add_task_queue, queue)
        self.on_change(None)


def _heard(xids: XidListener | None) -> int | None:
    try:
        return xids.heard() if xids is not None else None
    except DriverError as error:
        logger.warning("the driver's errors cannot be heard: %s", error)
        return None
