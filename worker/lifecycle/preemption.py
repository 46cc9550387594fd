"""Preemption: the notice that a cloud is about to take this spot instance."""

import logging
from collections.abc import Callable
from pathlib import Path

import httpx2

from worker.periodic import PeriodicThread, ThreadWatch
from worker.policy import WorkerPolicy

logger = logging.getLogger(__name__)

# Clouds give notice 30 seconds to two minutes ahead.
_POLL_EVERY_S = 5.0
_NO_NOTICE = ("", "FALSE", "NONE")
_AWS = "http://169.254.169.254/latest"
_GCP = "http://metadata.google.internal/computeMetadata/v1/instance/preempted"


class PreemptionWatch(WorkerPolicy):
    """Polls for a preemption notice, in a thread, and reports it once.

    Args:
        source: The value of ``TRAINING_PREEMPTION_SOURCE``.
        on_notice: Called from the thread.
        watch: Watches the thread.
    """

    def __init__(self, source: str, on_notice: Callable[[], None], watch: ThreadWatch) -> None:
        self._source, self._on_notice = source, on_notice
        self._is_preempted = _query_of(source)
        self._last_problem = ""
        self._thread = PeriodicThread(watch, "preemption", _POLL_EVERY_S, self._poll)

    def on_ready(self) -> None:
        """Start polling."""
        self._thread.start()

    def _poll(self) -> None:
        try:
            is_preempted = self._is_preempted()
        except (httpx2.HTTPError, OSError) as error:
            if str(error) != self._last_problem:
                logger.warning("cannot query %s for preemption: %s", self._source, error)
            self._last_problem = str(error)
            return
        if is_preempted:
            logger.warning("%s reports that this machine is preempted", self._source)
            self._on_notice()
            self._thread.stop()


def _query_of(source: str) -> Callable[[], bool]:
    if source == "aws":
        return _is_preempted_on_aws
    if source == "gcp":
        return lambda: _has_notice(_GCP, {"Metadata-Flavor": "Google"})
    if source.startswith(("http://", "https://")):
        return lambda: _has_notice(source, {})
    return Path(source).exists


def _is_preempted_on_aws() -> bool:
    """Query the instance metadata service, version 2, which needs a token."""
    ttl = {"X-aws-ec2-metadata-token-ttl-seconds": "60"}
    token = httpx2.put(f"{_AWS}/api/token", headers=ttl, timeout=_POLL_EVERY_S)
    token.raise_for_status()
    headers = {"X-aws-ec2-metadata-token": token.text}
    return _has_notice(f"{_AWS}/meta-data/spot/instance-action", headers)


def _has_notice(url: str, headers: dict[str, str]) -> bool:
    response = httpx2.get(url, headers=headers, timeout=_POLL_EVERY_S)
    if response.status_code == httpx2.codes.NOT_FOUND:
        return False
    response.raise_for_status()
    return response.text.strip().upper() not in _NO_NOTICE
