"""What Flower, task events and ``inspect`` show of a message: the job in one line, nothing secret.

Celery would show the arguments as their sender described them, and a job's addresses may be signed.
"""

import re
from typing import Any

from celery.worker.request import Request

from tasks.contract import job_id_of
from tasks.state.stage_message import task_label

# Anything else is refused by the task, and must not reach task events.
_SAFE = re.compile(r"[\w.-]{1,100}", re.ASCII)


class StageRequest(Request):  # type: ignore[misc]
    """A message that starts a stage; shows the job, the queue and the worker's GPU."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._argsrepr, self._kwargsrepr = self._label(), "{}"

    def info(self, safe: bool = True) -> dict[str, Any]:
        """Return what ``inspect active`` and ``inspect reserved`` show."""
        del safe
        redacted: dict[str, Any] = super().info(safe=True)
        return redacted

    def _label(self) -> str:
        queue, gpu = self.delivery_info.get("routing_key"), self.task.app.conf.training_gpu
        on_gpu = f" gpu={gpu}" if gpu else ""
        return f"{self._argsrepr} queue={queue}{on_gpu}"


class SubmitRequest(StageRequest):
    """A ``training.submit`` message, which shows its job's id, name and tenant only."""

    def _label(self) -> str:
        document = self.args[0] if self.args else None
        given = document if isinstance(document, dict) else {}
        job_id = _safe(given.get("id")) or job_id_of(self.id)
        name, tenant = _safe(given.get("name")), _safe(given.get("tenant"))
        return task_label(job_id, name or "lora", tenant or "default")


def _safe(value: object) -> str | None:
    return value if isinstance(value, str) and _SAFE.fullmatch(value) else None
