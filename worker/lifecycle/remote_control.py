"""Celery's remote control, which Flower and ``celery control`` use, as far as jobs allow it.

A worker trains one job at a time, on the queues that its GPU allows. Commands that would change
that, or stop a task behind the back of its job, are refused with what to do instead; so are those
of later versions of Celery, until they are known. ``shutdown`` drains.
"""

from collections.abc import Callable
from typing import Any

from celery.worker.control import Panel

from worker.lifecycle.drain import shut_down

# They change nothing but what Flower sees.
_ALLOWED = frozenset({"drain", "enable_events", "disable_events", "heartbeat"})
# It writes a file.
_REFUSED_INSPECTIONS = frozenset({"objgraph"})
_TASKS = "use 'training-worker cancel JOB' or 'training-worker pause JOB'"
_INSTEAD = {"revoke": _TASKS, "revoke_by_stamped_headers": _TASKS, "terminate": _TASKS}
_START = (
    "a worker's queues, processes and limits are those of its start: drain it, and start another"
)


def restrict_remote_control() -> None:
    """Refuse commands in this process's worker; call it before the worker starts."""
    for name, command in Panel.meta.items():
        is_inspection = command.type == "inspect" and name not in _REFUSED_INSPECTIONS
        if not is_inspection and name not in _ALLOWED:
            for each in filter(None, (name, command.alias)):
                Panel.data[each] = _refuse(name)
    Panel.data["shutdown"] = _drain


def _refuse(name: str) -> Callable[..., dict[str, str]]:
    def answer(_state: object, **_: Any) -> dict[str, str]:
        return {"error": f"{name} is refused: {_INSTEAD.get(name, _START)}"}

    return answer


def _drain(_state: object, **_: Any) -> dict[str, str]:
    shut_down()
    return {"ok": "draining"}
