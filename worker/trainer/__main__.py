"""The trainer process: ``python -P -m worker.trainer --events-fd N``.

Reads one ``TrainerRequest`` a line on standard input, writes events to the inherited descriptor N,
and ends with a ``TrainerExit`` code. Standard output and standard error are for people.
"""

import argparse
import faulthandler
import importlib
import os
import select
import signal
import sys
import traceback
from collections.abc import Iterator
from contextlib import closing

import torch
from pydantic import ValidationError

from tasks.errors import ErrorCode, JobError
from tasks.events import TrainFailed
from tasks.stages.trainer_protocol import TrainerExit, TrainerRequest
from worker.trainer.environment import set_up
from worker.trainer.errors import DamagedFileError, InterruptedRun, RefusedError
from worker.trainer.event_pipe import EventPipe, StopSwitch
from worker.trainer.model_cache import ModelCache


def main(package: str = "worker.trainer") -> int:
    """Serve requests until standard input ends.

    Args:
        package: Where the stages' modules are.

    Returns:
        A ``TrainerExit`` code.
    """
    parser = argparse.ArgumentParser(prog=f"python -P -m {package}")
    parser.add_argument("--events-fd", type=int, required=True)
    parser.add_argument("--idle-s", type=float, help="end after so long without a request")
    arguments = parser.parse_args()
    set_up()
    # Where it hangs, for the supervisor that is about to end it.
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
    kept = ModelCache()
    for line in lines:
        stop.waits_for_request = False
        code = _serve(package, line, pipe, stop, kept)
        if code != TrainerExit.DONE:
            return code
        # In this order: from here on the signal itself ends the wait for the next line.
        stop.waits_for_request = True
        if stop.is_set:
            break
    return TrainerExit.DONE


def _lines(idle_s: float | None) -> Iterator[str]:
    """The lines of standard input, until it ends or none comes for so long."""
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
    package: str, line: str, pipe: EventPipe, stop: StopSwitch, kept: ModelCache
) -> TrainerExit:
    """Carry out one request."""
    try:
        request = TrainerRequest.model_validate_json(line)
        # Each stage imports what it needs: a cache request with nothing to encode needs little.
        stage = importlib.import_module(f"{package}.{request.stage}")
        stage.run(request, pipe.emit, stop, kept)
    except ValidationError as error:
        return _refuse(pipe, ErrorCode.INTERNAL, f"the request is not valid: {error}")
    except DamagedFileError as error:
        return _refuse(pipe, error.code, str(error), error.key)
    except RefusedError as error:
        return _refuse(pipe, error.code, str(error))
    except torch.cuda.OutOfMemoryError as error:
        first_line = str(error).partition("\n")[0]
        return _refuse(pipe, ErrorCode.OUT_OF_MEMORY, f"the GPU's memory is full: {first_line}")
    except JobError as error:
        traceback.print_exc()
        _refuse(pipe, error.code, str(error))
        # Another try may find the store well again.
        return TrainerExit.CRASHED if error.retryable else TrainerExit.REFUSED
    return TrainerExit.DONE


def _refuse(
    pipe: EventPipe, code: ErrorCode, message: str, file_key: str | None = None
) -> TrainerExit:
    pipe.emit(TrainFailed(code=code, message=message, file_key=file_key))
    return TrainerExit.REFUSED


if __name__ == "__main__":
    sys.exit(main())
