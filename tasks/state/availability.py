"""A broker that answers and refuses is as unavailable as one that does not answer.

A full memory or disk, a failover or a long script lets a server answer requests with errors for a
while. ``raise_refusals`` lets every client of this process, also those of kombu and Celery, raise
them as ``RefusedError``. It is a connection error: so the connection is dropped, its host is looked
up again, and whatever waits for a lost connection waits for this one.
"""

import re
from typing import Any

import redis
from redis import Redis
from redis._parsers import BaseParser

from tasks.state import scripts
from tasks.state.keys import PROBE

_WAIT_FOR_PRIMARY = "wait for the failover, or use the address of the primary"
_REMEDIES = {
    "OOM": "raise its maxmemory, or shorten TRAINING_JOB_TTL",
    "MISCONF": "free space on its disk, and read its log",
    "NOREPLICAS": "start its replicas, or lower its min-replicas-to-write",
    "READONLY": _WAIT_FOR_PRIMARY,
    "UNBLOCKED": _WAIT_FOR_PRIMARY,
    "MASTERDOWN": _WAIT_FOR_PRIMARY,
    "CLUSTERDOWN": "use a server that belongs to no cluster",
    "TRYAGAIN": "use a server that belongs to no cluster",
    "LOADING": "wait until it has read its data from disk",
    "BUSY": "wait for its long script, or end that with SCRIPT KILL",
    "ERR max number of clients": "raise its maxclients, or close connections",
}
# The reply alone, in an aborted transaction, or of a script: servers before version 7 put the
# reply behind the script's position, later ones put the position behind the reply.
_REFUSAL = re.compile(
    r"(?:EXECABORT .*because of: |ERR Error running script .*@user_script: ?\d+: -?)?"
    rf"(?P<reply>(?P<code>{'|'.join(_REMEDIES)})\b.*?)(?:\. .*|\.| script: .*)?"
)
_parse_standard_error = BaseParser.parse_error.__func__  # type: ignore[attr-defined]


class RefusedError(redis.ConnectionError):
    """The broker answers, and refuses requests for now.

    Args:
        code: The key of ``_REMEDIES`` with which the reply begins.
        reply: The reply's first sentence.
    """

    def __init__(self, code: str, reply: str) -> None:
        super().__init__(code, reply)
        self.remedy = _REMEDIES[code]
        self.problem = f'it replies "{reply}"'

    def __str__(self) -> str:
        """Return the problem and its remedy."""
        return f"{self.problem}; {self.remedy}"

    def __repr__(self) -> str:
        """Return what logs of libraries show: more than redis-py's name of the class."""
        return f"{type(self).__name__}({self})"


def raise_refusals() -> None:
    """Let all clients of this process raise refusals; call it before the first connection."""
    BaseParser.parse_error = classmethod(_parse_error)  # type: ignore[assignment, method-assign]


def check_writes(client: Redis) -> None:
    """Write a key that expires at once, by a script as all changes of jobs.

    Raises:
        redis.RedisError: The broker is unavailable; ``RefusedError`` if it refuses.
    """
    scripts.write_probe(client, probe_key=PROBE)


def _parse_error(parser: type[BaseParser], response: str) -> Any:
    refusal = _REFUSAL.fullmatch(response)
    if refusal is not None:
        return RefusedError(refusal["code"], refusal["reply"])
    return _parse_standard_error(parser, response)
