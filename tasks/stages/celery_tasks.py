"""The Celery tasks of a worker, by their wire names, and what each end of a stage means to Celery.

Only a process that runs stages imports this module; ``tasks/app.py`` is for senders.
"""

import logging
from collections.abc import Callable
from typing import Any

from celery import Celery, Task
from celery.exceptions import Ignore, Reject

from tasks.app import make_app
from tasks.contract import CAPTION, SUBMIT, SUBMIT_QUEUE, task_name
from tasks.errors import JobError
from tasks.settings.settings import Settings
from tasks.stages.cache import cache
from tasks.stages.caption import write_captions
from tasks.stages.outcomes import (
    Cancelled,
    DeferredToNewerWorker,
    Discarded,
    Done,
    Failed,
    Paused,
    Requeued,
    Rerouted,
    RetriedAfterDelay,
)
from tasks.stages.prepare import prepare
from tasks.stages.publish import publish
from tasks.stages.results import final_answer
from tasks.stages.runner import Delivery, run_stage
from tasks.stages.stage_context import StageBody
from tasks.stages.submit import newer_than_known, submit, with_id
from tasks.stages.task_requests import StageRequest, SubmitRequest
from tasks.stages.train import train
from tasks.stages.worker_context import WorkerContext
from tasks.state.job_store import DispatchOutcome, FollowOutcome, JobStore
from tasks.state.record import VERSION, VERSION_HEADER

logger = logging.getLogger(__name__)

STAGE_BODIES: dict[str, StageBody] = {
    "prepare": prepare,
    "cache": cache,
    "train": train,
    "publish": publish,
}


def make_worker_app(
    settings: Settings,
    broker_url: str,
    worker: Callable[[], WorkerContext],
    draining: Callable[[], bool] = lambda: False,
    gpu: str | None = None,
) -> Celery:
    """Return the application of a process that runs stages.

    Args:
        settings: The process's settings.
        broker_url: The broker, which also keeps results.
        worker: Returns the same context each time; called in the process that runs tasks.
        draining: Whether the worker is shutting down.
        gpu: The name of the worker's GPU, which task events show.
    """
    app = make_app(settings, broker_url, draining)
    app.conf.training_gpu = gpu
    for stage, body in STAGE_BODIES.items():
        _add_stage(app, stage, body, worker, draining)
    _add_submit(app, worker)
    _add_caption(app, worker, draining)
    return app


def _add_stage(
    app: Celery,
    stage: str,
    body: StageBody,
    worker: Callable[[], WorkerContext],
    draining: Callable[[], bool],
) -> None:
    # Not shared: Celery would give this task, with this worker, to every other app of the process.
    # No limit of Celery's own retries: each sends a message to another queue, and none leads back.
    @app.task(  # type: ignore[untyped-decorator]
        name=task_name(stage),
        bind=True,
        shared=False,
        throws=(JobError,),
        max_retries=None,
        store_errors_even_if_ignored=True,
        Request=StageRequest,
    )
    def run(self: Task, job_id: str) -> dict[str, Any]:
        context, continues = worker(), False
        try:
            outcome = run_stage(stage, body, job_id, _delivery(self.request), context, draining)
            match outcome:
                case Done(answer, next_queue):
                    continues = next_queue is not None
                    # The next stage has been sent; an error fails the whole chain.
                    self.request.chain = None
                    return answer
                case Requeued(reason):
                    raise Reject(reason, requeue=True)
                case Rerouted(queue, _):
                    raise self.retry(
                        queue=queue, countdown=0, argsrepr=self.request.get("argsrepr")
                    )
                case RetriedAfterDelay(reason) | Discarded(reason) | DeferredToNewerWorker(reason):
                    raise Ignore(reason)
                case Paused():
                    raise Ignore("the job is paused")
                case Failed(error) | Cancelled(error):
                    raise error.for_wire() from None  # results keep the whole chain's text
        finally:
            # A job that continues frees no capacity.
            if not continues:
                context.services.dispatch_waiting()


def _delivery(request: Any) -> Delivery:
    return Delivery(
        queue=str((request.delivery_info or {}).get("routing_key", "")),
        tag=str((request.properties or {}).get("delivery_tag", "")),
        version=int(request.get(VERSION_HEADER) or 1),
    )


def _known_answer(state: JobStore, job_id: str, result_id: str) -> dict[str, Any] | None:
    """Return what a message is answered with now; None if its job's end answers it.

    Raises:
        JobError: The job was submitted before, and has ended with this error.
    """
    match state.follow(job_id, result_id):
        case FollowOutcome.FOLLOWED:
            return None
        case FollowOutcome.ENDED:
            job = state.summary(job_id)
            if job.status.ended:
                return final_answer(job)
            return _known_answer(state, job_id, result_id)  # it was replayed meanwhile
        case FollowOutcome.FULL:
            return {"job_id": job_id}


def _add_submit(app: Celery, worker: Callable[[], WorkerContext]) -> None:
    # Its result follows the whole job and stays STARTED until the end; the record has the stages.
    @app.task(  # type: ignore[untyped-decorator]
        name=SUBMIT,
        bind=True,
        shared=False,
        throws=(JobError,),
        track_started=True,
        max_retries=None,
        Request=SubmitRequest,
    )
    def submit_job(self: Task, job: dict[str, Any]) -> dict[str, Any]:
        context = worker()
        if newer_than_known(job):
            newest = context.services.newest_versions().get(SUBMIT_QUEUE, 0)
            if newest > VERSION:
                # The message waits here for a moment, and then for another worker.
                pause_s = 0.0 if self.request.eta else context.backoff.delay_s(0)
                raise self.retry(countdown=pause_s)
        try:
            submission = submit(
                with_id(job, self.request.id),
                context.state,
                self.request.id,
                open_store=lambda: context.store,
            )
            job_id = submission.job_id
            known = _known_answer(context.state, job_id, self.request.id)
        except JobError as error:
            raise error.for_wire() from None  # results keep the whole chain's text
        if known is not None:
            return known
        if submission.outcome == DispatchOutcome.WAITING:
            context.services.dispatch_waiting()
        raise Ignore(f"job {job_id} continues without this task, and keeps its result")


def _add_caption(
    app: Celery, worker: Callable[[], WorkerContext], draining: Callable[[], bool]
) -> None:
    @app.task(  # type: ignore[untyped-decorator]
        name=CAPTION,
        bind=True,
        shared=False,
        ignore_result=True,
        max_retries=None,
        Request=StageRequest,
    )
    def caption(self: Task, run_id: str) -> None:
        context = worker()
        try:
            match write_captions(run_id, context, draining):
                case Requeued(reason):
                    raise Reject(reason, requeue=True)
                case RetriedAfterDelay():
                    raise self.retry(
                        countdown=context.backoff.delay_s(0),
                        argsrepr=self.request.get("argsrepr"),
                    )
                case Discarded(reason):
                    raise Ignore(reason)
        finally:
            context.services.dispatch_waiting()
