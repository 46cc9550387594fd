"""The trainer process: ``python -P -m worker.trainer --events-fd N``.

It reads one ``Request`` a line from standard input, writes events to the inherited
descriptor N, and exits with a ``TrainerExit`` code. Standard output and standard error are for
people.
"""

import argparse
import faulthandler
import gc
import importlib
import os
import select
import signal
import sys
import traceback
from collections.abc import Iterator
from contextlib import closing
from typing import Any

from pydantic import ValidationError

from tasks.errors import ErrorCode, JobError
from tasks.events import TrainFailed
from tasks.stages.cuda_errors import GPU_MESSAGES
from tasks.stages.trainer_protocol import TrainerExit, parse_request
from worker.trainer.compute.memory import find_gpu_error
from worker.trainer.environment import set_up
from worker.trainer.errors import DamagedFileError, InterruptedRun, RefusedError
from worker.trainer.event_pipe import EventPipe, StopSwitch
from worker.trainer.model_cache import ModelCache


def main(package: str = "worker.trainer") -> int:
    """Serve requests until standard input ends.

    Args:
        package: The package of the stages' modules.

    Returns:
        A ``TrainerExit`` code.
    """
    parser = argparse.ArgumentParser(prog=f"python -P -m {package}")
    parser.add_argument("--events-fd", type=int, required=True)
    parser.add_argument("--idle-s", type=float, help="exit after N seconds without a request")
    arguments = parser.parse_args()
    set_up()
    # The supervisor asks for a stack trace before it ends a process that hangs.
    faulthandler.register(signal.SIGUSR1)
    stop = StopSwitch()
    signal.signal(signal.SIGTERM, stop)
    with closing(EventPipe(arguments.events_fd)) as pipe:
        stop.beat = pipe.beat
        try:
            return _serve_all(package, _lines(arguments.idle_s), pipe, stop)
        except InterruptedRun:
            return TrainerExit.INTERRUPTED


def _serve_all(
    package: str, lines: Iterator[str], pipe: EventPipe, stop: StopSwitch
) -> TrainerExit:
    cache = ModelCache()
    for line in lines:
        stop.waits_for_request = False
        code = _serve(package, line, pipe, stop, cache)
        if code != TrainerExit.DONE:
            return code
        # In this order: from here on the signal handler itself ends the wait for the next line.
        stop.waits_for_request = True
        if stop.is_set:
            break
    return TrainerExit.DONE


def _lines(idle_s: float | None) -> Iterator[str]:
    """Yield the lines of standard input, until it ends or none comes for ``idle_s``."""
    descriptor, buffer = sys.stdin.fileno(), b""
    while True:
        line, newline, rest = buffer.partition(b"\n")
        if newline:
            buffer = rest
            yield line.decode()
            continue
        ready, _, _ = select.select([descriptor], [], [], idle_s)
        chunk = os.read(descriptor, 65536) if ready else b""
        if not chunk:
            return
        buffer += chunk


def _serve(
    package: str, line: str, pipe: EventPipe, stop: StopSwitch, cache: ModelCache
) -> TrainerExit:
    """Carry out one request."""
    try:
        request = parse_request(line)
        stage = _import_stage(f"{package}.{request.stage}")
        stage.run(request, pipe.emit, stop, cache)
    except ValidationError as error:
        return _refuse(pipe, ErrorCode.INTERNAL, f"the request is not valid: {error}")
    except DamagedFileError as error:
        return _refuse(pipe, error.code, str(error), error.key)
    except RefusedError as error:
        return _refuse(pipe, error.code, str(error))
    except RuntimeError as error:
        found = find_gpu_error(error)
        if found is None:
            raise
        code, text = found
        refused = _refuse(pipe, code, f"{GPU_MESSAGES[code]}: {text}")
        if code == ErrorCode.OUT_OF_MEMORY:
            return refused
        traceback.print_exc()
        # Another process may compute on it, or another worker has a better one.
        return TrainerExit.CRASHED
    except JobError as error:
        traceback.print_exc()
        _refuse(pipe, error.code, str(error))
        # A restarted trainer may find the store available again.
        return TrainerExit.CRASHED if error.retryable else TrainerExit.REFUSED
    return TrainerExit.DONE


def _import_stage(name: str) -> Any:
    """Import a stage's module when it is needed: other requests need fewer libraries.

    Collecting garbage meanwhile would take a sixth of the time, and find none.
    """
    gc.disable()
    try:
        return importlib.import_module(name)
    finally:
        gc.enable()


def _refuse(
    pipe: EventPipe, code: ErrorCode, message: str, file_key: str | None = None
) -> TrainerExit:
    pipe.emit(TrainFailed(code=code, message=message, file_key=file_key))
    return TrainerExit.REFUSED


if __name__ == "__main__":
    sys.exit(main())
