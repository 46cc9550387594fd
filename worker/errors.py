"""Errors of a worker's host and of the command line, on top of ``tasks/errors.py``.

JobError
├── UnreadableJobFileError   a job file that cannot be read
├── InventoryError           ``TRAINING_GPUS`` is malformed, or a GPU is not in it
├── NoGpuToMeasureError      there is no GPU here to measure, or it is busy
├── BrokerStartError         the embedded broker cannot start
│   └── FleetRunningError    another fleet runs in this home
├── FleetStartError          a worker or part of the local fleet does not start
├── PortsTakenError          a port is taken, or its address is not this machine's
├── WorkerNameTakenError     another live worker has this name
└── UnhealthyWorkerError     a worker is not ready, or hangs
"""

from collections.abc import Sequence
from pathlib import Path

from tasks.errors import ErrorCode, JobError


class UnreadableJobFileError(JobError):
    """A job file that cannot be read."""

    def __init__(self, path: Path, problem: str) -> None:
        super().__init__(f"cannot read the job file {path}: {problem}", ErrorCode.UNREADABLE_FILE)


class InventoryError(JobError):
    """``TRAINING_GPUS`` is malformed, or a GPU is not in it."""

    def __init__(self, message: str) -> None:
        super().__init__(message, ErrorCode.NO_WORKER)


class NoGpuToMeasureError(JobError):
    """There is no GPU on this host to measure, or it is busy."""

    def __init__(self, message: str) -> None:
        super().__init__(message, ErrorCode.INVALID_STATE)


class BrokerStartError(JobError):
    """The embedded broker cannot start."""

    def __init__(self, problem: str) -> None:
        super().__init__(f"cannot start the embedded broker: {problem}", ErrorCode.NO_BROKER)


class FleetRunningError(BrokerStartError):
    """Another fleet runs in this home.

    Args:
        home: The folder of both.
        pid: The process of the other ``up``; 0 if it is not known.
        console: Address of its console; empty without one.
    """

    def __init__(self, home: Path, pid: int = 0, console: str = "") -> None:
        where = f"; its console is at {console}" if console else ""
        how = f", or with 'kill {pid}'" if pid else ""
        super().__init__(
            f"another fleet runs in {home}{where}. Stop it with Ctrl-C in its terminal{how}, or "
            "set TRAINING_HOME to another folder"
        )


class FleetStartError(JobError):
    """A worker or part of the local fleet does not start.

    Args:
        names: The workers and parts.
        after_s: How long it was waited for, in seconds.
    """

    def __init__(self, names: Sequence[str], after_s: float) -> None:
        super().__init__(
            f"not ready after {after_s:g} s: {', '.join(names)}; see the log", ErrorCode.INTERNAL
        )


class PortsTakenError(JobError):
    """A port is taken, or its address is not this machine's.

    Args:
        problems: The part of the fleet, the port, the address and the reason, of each.
    """

    def __init__(self, problems: Sequence[tuple[str, int, str, str]]) -> None:
        texts = (
            f"port {port} is taken; set TRAINING_{part.upper()}_PORT ({address}: {reason})"
            for part, port, address, reason in problems
        )
        super().__init__("\n".join(texts), ErrorCode.INVALID_STATE)


class WorkerNameTakenError(JobError):
    """Another live worker has this name."""

    def __init__(self, worker: str) -> None:
        super().__init__(
            f"another live worker is named {worker}: give this one another name with --name (and "
            "each machine its own hostname), or stop the other one",
            ErrorCode.INVALID_STATE,
        )


class UnhealthyWorkerError(JobError):
    """A worker is not ready, or hangs."""

    def __init__(self, problem: str) -> None:
        super().__init__(problem, ErrorCode.NO_WORKER)
