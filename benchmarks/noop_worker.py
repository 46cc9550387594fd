"""Workers without work: training-worker with empty stages, and bare Celery.

    python -m benchmarks.noop_worker training-worker|bare|bare-events NAME QUEUES READY_FILE

Both take the broker from ``TRAINING_BROKER_URL``, and their messages from the same queues.
"""

import sys
import warnings
from pathlib import Path
from typing import Any

from celery import Celery
from celery.canvas import Signature, chain
from celery.signals import worker_ready

from routing.queues import CPU_QUEUE, stage_queue
from tasks.contract import STAGES, task_name
from tasks.settings.settings import load_settings
from tasks.stages.celery_tasks import STAGE_BODIES
from tasks.stages.stage_context import StageContext, StageResult
from worker.gpu.inventory import declared_gpus
from worker.worker import run_worker

GPU = "40gb"
GPU_QUEUE = f"gpu.{GPU}"


def do_nothing(context: StageContext) -> StageResult:
    """Do nothing, in place of a stage."""
    return StageResult("nothing", result={} if context.stage == STAGES[-1] else None)


def bare_app(broker_url: str) -> Celery:
    """Return a plain Celery app for long tasks: late acknowledgement, prefetch 1."""
    app = Celery("bare", broker=broker_url, backend=broker_url, set_as_current=False)
    app.conf.update(
        accept_content=["json"],
        task_acks_late=True,
        task_reject_on_worker_lost=True,
        worker_prefetch_multiplier=1,
        worker_concurrency=1,
        worker_pool="prefork",
        worker_hijack_root_logger=False,
    )

    def nothing(job_id: str) -> dict[str, Any]:
        return {"job_id": job_id}

    for stage in STAGES:
        app.task(name=task_name(stage), shared=False)(nothing)
    return app


def bare_chain(app: Celery, job_id: str) -> Signature:
    """Return a chain of four tasks, on the queues of a job's four stages."""
    return chain(
        app.signature(
            task_name(stage), (job_id,), queue=stage_queue(stage, GPU_QUEUE), immutable=True
        )
        for stage in STAGES
    )


def main() -> int:
    """Work until stopped.

    Returns:
        The exit code.
    """
    kind, name, queues, ready_file = sys.argv[1:]
    settings, served = load_settings(), tuple(queues.split(","))
    assert settings.broker_url is not None
    url = settings.broker_url.get_secret_value()
    if kind == "training-worker":
        STAGE_BODIES.update(dict.fromkeys(STAGES, do_nothing))
        gpu = None if CPU_QUEUE in served else declared_gpus(GPU)[0]
        return run_worker(
            settings, url, name=name, queues=served, gpu=gpu, ready_file=Path(ready_file)
        )
    if kind not in ("bare", "bare-events"):
        raise SystemExit(f"unknown kind {kind}: use training-worker, bare or bare-events")
    warnings.simplefilter("ignore")
    worker_ready.connect(lambda **_: Path(ready_file).touch(), weak=False)
    worker = bare_app(url).Worker(
        task_events=kind == "bare-events",
        hostname=f"{name}@bare",
        queues=list(served),
        optimization="fair",
        without_mingle=True,
        without_gossip=True,
        quiet=True,
        loglevel="WARNING",
    )
    worker.start()
    return int(worker.exitcode or 0)


if __name__ == "__main__":
    sys.exit(main())
