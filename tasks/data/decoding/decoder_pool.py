"""Pool of decoder processes: reads untrusted files under limits of time and memory.

A decoder that exceeds its time, crashes or is killed costs the one file that it reads, and is
replaced. An exception of ``check_stop`` kills all decoders at once.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from socket import socketpair
from threading import Lock, local
from typing import Any

from tasks.data.decoding.archives import Unpacked
from tasks.data.decoding.image_file import MAX_DECODING_BYTES
from tasks.data.memory_budget import MemoryBudget, map_in_threads
from tasks.errors import Problem

IMAGE_TIME_LIMIT_S = 60.0
"""The time for an image with its mask; the largest ones take a few seconds."""
FILE_TIME_LIMIT_S = 1800.0
"""The time between two answers about an archive or a parquet file."""
# More than the names of a million files.
_MAX_ANSWER_BYTES = 256 * 2**20
# Nothing of a worker's secrets. One memory pool: the others reserve memory ahead.
_ENVIRONMENT = {"ARROW_DEFAULT_MEMORY_POOL": "system"}
_INHERITED = ("PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "PYTHONPATH")


class DecodeError(Exception):
    """A file cannot be decoded; the message says why, without the file's name."""


class UnreadFormatError(DecodeError):
    """An image's format is known and not read.

    Args:
        message: The format.
        remedy: What to do.
    """

    def __init__(self, message: str, remedy: str) -> None:
        super().__init__(message)
        self.remedy = remedy


@dataclass(frozen=True)
class DecoderLimits:
    """Limits of a pool.

    Attributes:
        processes: The maximum number of decoders. Each takes some 50 MB itself.
        memory_bytes: The memory for files that are decoded at the same time. One file may take
            more, and is then decoded alone.
        time_s: The maximum time for one file.
    """

    processes: int = min(16, os.cpu_count() or 1)
    memory_bytes: int = MAX_DECODING_BYTES
    time_s: float = IMAGE_TIME_LIMIT_S


def decode_all(
    requests: Iterable[dict[str, Any]],
    *,
    check_stop: Callable[[], object] = lambda: None,
    limits: DecoderLimits | None = None,
    find: Callable[[dict[str, Any]], Any | None] = lambda _: None,
) -> Iterator[Any]:
    """Yield a decoder's result for each request, in order, or a ``DecodeError``.

    Args:
        requests: What ``Decoder`` reads.
        check_stop: Called a few times a second; an exception that it raises ends the decoders.
        limits: The limits of the pool.
        find: Returns the result of a request if it is known; called in several threads.
    """
    pool = _Pool(limits or DecoderLimits())

    def decode(request: dict[str, Any]) -> Any:
        try:
            known = find(request)
            return pool.decoder().decode(request) if known is None else known
        except DecodeError as error:
            return error

    try:
        yield from map_in_threads(
            decode, requests, pool.limits.processes, check_stop=check_stop, abort=pool.close
        )
    finally:
        pool.close()


def decode_file(
    request: dict[str, Any],
    *,
    check_stop: Callable[[], object],
    on_items: Callable[[list[Any]], None] = lambda _: None,
) -> Any:
    """Return a decoder's result for an archive or a parquet file.

    Args:
        request: What ``Decoder`` reads.
        check_stop: Called a few times a second; an exception that it raises ends the decoder.
        on_items: Receives parts of the result, in another thread. An exception that it raises ends
            the decoder.

    Raises:
        DecodeError: The file cannot be decoded.
        OSError: The disk takes no more files.
    """
    pool = _Pool(DecoderLimits(processes=1, time_s=FILE_TIME_LIMIT_S))

    def decode(request: dict[str, Any]) -> Any:
        return pool.decoder().decode(request, on_items)

    try:
        [result] = map_in_threads(decode, [request], 1, check_stop=check_stop, abort=pool.close)
        return result
    finally:
        pool.close()


def unpack_archive(
    archive: Path, folder: Path, *, max_bytes: int, check_stop: Callable[[], object] = lambda: None
) -> Unpacked:
    """Unpack an archive in a decoder; see ``unpack``.

    Raises:
        DecodeError: The archive cannot be read.
        OSError: The disk takes no more files.
    """
    arguments = {"folder": str(folder), "max_bytes": max_bytes}
    request = {"kind": "archive", "path": str(archive), **arguments}
    unpacked = decode_file(request, check_stop=check_stop)
    files = {name: Path(path) for name, path in unpacked["files"].items()}
    problems = [Problem(**problem) for problem in unpacked["problems"]]
    return Unpacked(files, problems, unpacked["others"])


class _Pool:
    """Decoders, one for each thread that asks.

    The kernel ends a decoder with the thread that started it; see ``end_with_parent``.
    """

    def __init__(self, limits: DecoderLimits) -> None:
        self.limits = limits
        self._budget = MemoryBudget(limits.memory_bytes)
        self._of_thread = local()
        self._decoders: list[_DecoderProcess] = []

    def decoder(self) -> "_DecoderProcess":
        """Return this thread's decoder."""
        if not hasattr(self._of_thread, "decoder"):
            self._of_thread.decoder = _DecoderProcess(self._budget, self.limits.time_s)
            self._decoders.append(self._of_thread.decoder)
        decoder: _DecoderProcess = self._of_thread.decoder
        return decoder

    def close(self) -> None:
        """Kill all decoders."""
        for decoder in list(self._decoders):
            decoder.close()


class _DecoderProcess:
    """A decoder process that is started when it is needed, and again after its end.

    Args:
        budget: The memory that the decoders of a pool share.
        time_limit_s: The maximum time for each answer.
    """

    def __init__(self, budget: MemoryBudget, time_limit_s: float) -> None:
        self._budget, self._time_limit_s = budget, time_limit_s
        self._process: subprocess.Popen[bytes] | None = None
        self._is_closed, self._lock = False, Lock()

    def decode(
        self, request: dict[str, Any], on_items: Callable[[list[Any]], None] = lambda _: None
    ) -> Any:
        """Return the result of a request; see ``decode_file``.

        Raises:
            DecodeError: The file cannot be decoded.
            OSError: The disk takes no more files.
        """
        self._start()
        with ExitStack() as reserved:
            answer = self._exchange(json.dumps(request).encode() + b"\n")
            while True:
                match answer:
                    case {"reserve": int(count)}:
                        reserved.enter_context(self._budget.reserve(count))
                        answer = self._exchange(b"reserved\n")
                    case {"items": list(items)}:
                        on_items(items)
                        answer = self._exchange()
                    case {"disk_error": [int(number), str(reason)]}:
                        raise OSError(number, reason)
                    case {"problem": str(problem), "remedy": str(remedy)}:
                        raise UnreadFormatError(problem, remedy)
                    case {"problem": str(problem)}:
                        raise DecodeError(problem)
                    case {"result": result}:
                        return result
                    case _:
                        raise DecodeError("cannot be read: its decoder's answer is malformed")

    def close(self) -> None:
        """Kill the process, and start no other."""
        with self._lock:
            self._is_closed = True
        self._kill()

    def _start(self) -> None:
        with self._lock:
            if self._is_closed:
                raise DecodeError("was not read")
            if self._process is not None and self._process.poll() is None:
                return
            self._kill()
            ours, theirs = socketpair()
            ours.settimeout(self._time_limit_s)
            self._messages = ours.makefile("rwb")
            ours.close()  # with its messages
            environment = {name: os.environ[name] for name in _INHERITED if name in os.environ}
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "tasks.data.decoding.decoder", str(theirs.fileno())],
                env=environment | _ENVIRONMENT,
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
            )
            theirs.close()

    def _exchange(self, message: bytes = b"") -> Any:
        """Send a message, if one is given, and return the next answer.

        Raises:
            DecodeError: There is no answer in time, or the process has ended.
        """
        try:
            self._messages.write(message)
            self._messages.flush()
            return json.loads(self._messages.readline(_MAX_ANSWER_BYTES))
        except TimeoutError as error:
            self._kill()
            raise DecodeError(f"takes longer than {self._time_limit_s:g} s to read") from error
        # OSError: the socket is closed. ValueError: the answer is cut off, or too long.
        except (OSError, ValueError) as error:
            raise DecodeError(_end_message(self._kill())) from error

    def _kill(self) -> int:
        """Kill the process, and return its exit code."""
        if self._process is None:
            return 0
        self._process.kill()
        code = self._process.wait()
        with suppress(OSError):  # what a dead process did not read
            self._messages.close()
        return code


def _end_message(code: int) -> str:
    if code == -signal.SIGKILL:
        return "ended its decoder (killed); the machine may be out of memory"
    return f"ended its decoder ({code}); it is damaged or hostile"
