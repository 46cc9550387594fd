"""The process: a request on its input, then one JSON object for each event.

It prints ``true`` once it has a run. Its first failure is its last: it prints why, as a JSON
string, and the job continues. It ends with its input.
"""

import json
import os
import resource
import sys
from pathlib import Path
from typing import Any

from tasks.escaping import safe_message
from tasks.tracking import TrackerRequest, WandbSecret
from worker.tracker.run import TrackedRun

_MAX_REASON = 300
# MLflow with its dependencies takes some 0.3 GB, W&B's service less.
_MAX_BYTES = 4 * 2**30


def main() -> int:
    """Report a job's run until the input ends."""
    _limit_memory()
    # Libraries write to the standard output as they like; this is our own.
    with os.fdopen(os.dup(1), "w") as output:
        os.dup2(2, 1)
        request = TrackerRequest.model_validate_json(sys.stdin.readline())
        try:
            run = _open(request)
            print("true", file=output, flush=True)
            _report(run)
        except Exception as error:  # noqa: BLE001 - whatever a tracker does, the training continues
            print(json.dumps(_reason(request, error)), file=output, flush=True)
            return 1
    return 0


def _limit_memory() -> None:
    """Bound what a server's answers can take of this machine's memory.

    W&B's service inherits the limits. A core dump would write the secret to the disk.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        limit = _MAX_BYTES if hard == resource.RLIM_INFINITY else min(_MAX_BYTES, hard)
        resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))


def _report(run: TrackedRun) -> None:
    last_step = 0
    for line in sys.stdin:
        message: dict[str, Any] = json.loads(line)
        match message:
            case {"end": end}:
                run.finish(end)
                return
            case {"image": path, "step": step, "caption": caption}:
                run.log_image(step, Path(path), caption)
                Path(path).unlink(missing_ok=True)
            # A trainer that was restarted repeats the steps after its checkpoint.
            case {"step": step, "values": values} if step > last_step:
                last_step = step
                run.log(step, values)


def _open(request: TrackerRequest) -> TrackedRun:
    Path(request.scratch_dir).mkdir(parents=True, exist_ok=True)
    secret = request.secret
    if isinstance(secret, WandbSecret):
        from worker.tracker.wandb_run import WandbRun

        return WandbRun(request, secret)
    from worker.tracker.mlflow_run import MlflowRun

    return MlflowRun(request, secret)


def _reason(request: TrackerRequest, error: Exception) -> str:
    """Return an error's first line without the secret."""
    reason = f"{type(error).__name__}: {error}".partition("\n")[0]
    for value in json.loads(request.secret.model_dump_json()).values():
        if value and value != request.secret.tracker and value != request.secret.address:
            reason = reason.replace(value, "...")
    return safe_message(reason[:_MAX_REASON])


if __name__ == "__main__":
    sys.exit(main())
