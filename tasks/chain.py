"""The canvas of a job: prepare -> cache -> train -> publish, each on its queue."""

from celery import Celery
from celery.canvas import Signature, chain

from routing.policy import Route
from routing.queues import stage_queue
from tasks.contract import STAGES, task_name


def job_chain(
    app: Celery,
    job_id: str,
    route: Route,
    first: str = STAGES[0],
    first_queue: str | None = None,
) -> Signature:
    """The job's chain, from a stage on.

    Its messages carry the job's id and nothing else: what stages leave for each other is in the
    job's record, where it is fenced. An explicit queue wins over every router, and retries keep
    it, so that a FLUX stage cannot land on a smaller class.
    """
    return chain(
        app.signature(
            task_name(stage),
            args=(job_id,),
            queue=(stage == first and first_queue) or stage_queue(stage, route.gpu_queue),
            immutable=True,
        )
        for stage in STAGES[STAGES.index(first) :]
    )
