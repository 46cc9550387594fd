"""Processes that read what callers upload, a few at a time: only these decode images.

Each request starts a process (``python -P -m MODULE``), which reads it from its standard input and
writes one reply to its standard output, both JSON. The console ends it after a time limit.
"""

import asyncio
import json
import logging
import os
import sys
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from console.services.shares import Share
from tasks.data.decoding.decoder_pool import DecodeError, DecoderLimits
from tasks.errors import DatasetError, JobError, Problem
from tasks.strict_model import StrictModel

logger = logging.getLogger(__name__)

R = TypeVar("R", bound=StrictModel)

_CONCURRENCY = 2
# Running or waiting, of all accounts.
_MAX_REQUESTS = 10
TIMEOUT_S = 300.0
"""Time limit of a process."""
_TOO_LONG = (
    "reading the images takes too long: use fewer or smaller ones, or submit a job, whose worker "
    "has no such limit"
)
COMMAND = (sys.executable, "-P", "-m")
"""Command of a process, before its module."""
# Requests of pages have precedence.
_NICE = 10
DECODERS = DecoderLimits(processes=2, memory_bytes=256 * 2**20)
"""A console has less memory than a worker; images that need more are decoded alone."""


class Processes:
    """Starts the processes, in fair shares of all accounts."""

    def __init__(self) -> None:
        self._running = asyncio.Semaphore(_CONCURRENCY)
        self._pending = Share("dataset checks", _MAX_REQUESTS, always=2, retry_after_s=30)
        # One of a kind at a time an account: slow servers of one account's jobs do not delay the
        # others, nor a check the thumbnails.
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def request(self, account: str, module: str, request: StrictModel) -> dict[str, Any]:
        """Return the reply of a process; one with ``error`` if it fails.

        Args:
            account: The account whose share it takes.
            module: The process's module.
            request: What it reads.

        Raises:
            TooManyError: The account has used up its share.
        """
        with self._pending.hold(account):
            async with self._locks[f"{module} {account}"], self._running:
                return await run_process(module, request)


async def run_process(module: str, request: StrictModel) -> dict[str, Any]:
    """Run the process for one request and return its reply."""
    process = await asyncio.create_subprocess_exec(
        *COMMAND,
        module,
        # The process does not need the broker's password.
        env={name: value for name, value in os.environ.items() if not name.startswith("TRAINING_")},
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        document = request.model_dump_json().encode()
        output, _ = await asyncio.wait_for(process.communicate(document), TIMEOUT_S)
    except TimeoutError:
        return _failed(_TOO_LONG)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode != 0:
        logger.error("%s exited with %s", module, process.returncode)
        return _failed("the images cannot be read; the console's log has the reason")
    reply: dict[str, Any] = json.loads(output)
    return reply


def answer(model: type[R], make_reply: Callable[[R], dict[str, Any]]) -> None:
    """Answer one request, in the process.

    Args:
        model: The request's model.
        make_reply: Returns the reply.
    """
    os.nice(_NICE)
    with suppress(OSError):
        # The kernel ends this process first when memory runs out.
        Path("/proc/self/oom_score_adj").write_text("1000", "utf-8")
    request = model.model_validate_json(sys.stdin.buffer.read())
    try:
        reply = make_reply(request)
    except JobError as error:
        reply = error_reply(error)
    except DecodeError as error:
        reply = error_reply(DatasetError([Problem("", str(error))], "prepare"))
    sys.stdout.write(json.dumps(reply))


def error_reply(error: JobError) -> dict[str, Any]:
    """Return the reply about an error."""
    return {"error": {"code": error.code, "stage": error.stage, "message": error.message}}


def _failed(message: str) -> dict[str, Any]:
    return {"error": {"code": "internal", "stage": "prepare", "message": message}}
