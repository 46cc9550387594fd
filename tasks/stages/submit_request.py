"""What a worker tells others of a ``training.submit`` message: which job it is, never the document.

Task events go to whoever watches the fleet, and a job's addresses may be signed: Flower would show
what the sender's Celery wrote of the arguments.
"""

import re
from typing import Any

from celery.worker.request import Request

from tasks.contract import job_id_of

# What may be an id; the rest is refused by the task, and may be anything.
_ID = re.compile(r"[\w.-]{1,100}")


class SubmitRequest(Request):  # type: ignore[misc]
    """A message that submits a job."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._argsrepr, self._kwargsrepr = f"({_job_id(self.id, self.args)!r},)", "{}"

    def info(self, safe: bool = True) -> dict[str, Any]:
        """What ``inspect active`` and ``inspect reserved`` show of it."""
        del safe
        told: dict[str, Any] = super().info(safe=True)
        return told


def _job_id(message_id: str, args: Any) -> str:
    document = args[0] if args else None
    own = document.get("id") if isinstance(document, dict) else None
    return own if isinstance(own, str) and _ID.fullmatch(own) else job_id_of(message_id)
