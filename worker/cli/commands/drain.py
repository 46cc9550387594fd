"""``training-worker drain``."""

import time

from tasks.errors import ErrorCode, JobError
from tasks.settings.settings import Settings
from worker.cli.client import client_of
from worker.cli.output import print_json, stdout

# Beyond the grace for a checkpoint: until a worker has heard of it, and until it has ended.
_MORE_S = 30.0


def run(
    settings: Settings, *, workers: tuple[str, ...], all_workers: bool, wait: bool, json: bool
) -> None:
    """Let workers hand their jobs back, from a checkpoint, and end."""
    client = client_of(settings)
    live = sorted(client.present_workers())
    if all_workers == bool(workers):
        raise JobError("name the workers, or give --all", ErrorCode.NO_WORKER)
    unknown = sorted(set(workers) - set(live))
    if unknown:
        there = ", ".join(live) or "none is live"
        raise JobError(f"no worker {', '.join(unknown)}; there is: {there}", ErrorCode.NO_WORKER)
    asked = list(workers) or live
    client.drain(asked)
    deadline = time.monotonic() + settings.shutdown_timeout.total_seconds() + _MORE_S
    left = set(asked)
    while wait and left and time.monotonic() < deadline:
        time.sleep(0.2)
        left &= client.present_workers().keys()
    for name in asked:
        state = "asked to end" if not wait else "still there" if name in left else "gone"
        if json:
            print_json({"worker": name, "state": state})
        else:
            stdout.print(f"{name}: {state}", markup=False)
    if wait and left:
        raise JobError(f"still there: {', '.join(sorted(left))}", ErrorCode.INVALID_STATE)
