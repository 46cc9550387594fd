"""The notice that this machine is about to be taken away, as clouds give it for spot instances."""

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path

import httpx2

logger = logging.getLogger(__name__)

# Clouds give notice 30 seconds to two minutes ahead.
_ASK_EVERY_S = 5.0
_NONE = ("", "FALSE", "NONE")
_AWS = "http://169.254.169.254/latest"
_GCP = "http://metadata.google.internal/computeMetadata/v1/instance/preempted"


def watch_for_notice(source: str, on_notice: Callable[[], None]) -> None:
    """Call ``on_notice`` once, from a thread, when there is a notice.

    Args:
        source: As in ``TRAINING_PREEMPTION_SOURCE``.
        on_notice: What to do then.
    """
    ask = _question(source)

    def watch() -> None:
        told = ""
        while True:
            try:
                if ask():
                    logger.warning("%s says that this machine goes away", source)
                    on_notice()
                    return
            except (httpx2.HTTPError, OSError) as error:
                if str(error) != told:
                    logger.warning("cannot ask %s whether this machine stays: %s", source, error)
                told = str(error)
            time.sleep(_ASK_EVERY_S)

    threading.Thread(target=watch, name="notice", daemon=True).start()


def _question(source: str) -> Callable[[], bool]:
    if source == "aws":
        return _aws
    if source == "gcp":
        return lambda: _says_so(_GCP, {"Metadata-Flavor": "Google"})
    if source.startswith(("http://", "https://")):
        return lambda: _says_so(source, {})
    return Path(source).exists


def _aws() -> bool:
    """By its metadata service, version 2: a token first."""
    life = {"X-aws-ec2-metadata-token-ttl-seconds": "60"}
    token = httpx2.put(f"{_AWS}/api/token", headers=life, timeout=_ASK_EVERY_S)
    token.raise_for_status()
    headers = {"X-aws-ec2-metadata-token": token.text}
    return _says_so(f"{_AWS}/meta-data/spot/instance-action", headers)


def _says_so(url: str, headers: dict[str, str]) -> bool:
    answer = httpx2.get(url, headers=headers, timeout=_ASK_EVERY_S)
    if answer.status_code == httpx2.codes.NOT_FOUND:
        return False
    answer.raise_for_status()
    return answer.text.strip().upper() not in _NONE
