"""The Celery chain of a job: prepare -> cache -> train -> publish, each on its queue."""

from celery import Celery
from celery.canvas import Signature, chain
from celery.result import denied_join_result

from routing.queues import stage_queue
from tasks.contract import STAGES, task_name
from tasks.state.record import VERSION, VERSION_HEADER, JobSummary


def job_chain(
    app: Celery,
    job_id: str,
    gpu_queue: str,
    first: str = STAGES[0],
    first_queue: str | None = None,
    version: int = VERSION,
) -> Signature:
    """Return the job's chain from a stage on.

    Its messages carry the job's id and nothing else: what stages leave for each other is in the
    job's record, where it is fenced. An explicit queue overrides every router, and retries keep
    it, so that a FLUX stage cannot land on a smaller class.
    """
    return chain(
        app.signature(
            task_name(stage),
            args=(job_id,),
            queue=(stage == first and first_queue) or stage_queue(stage, gpu_queue),
            headers={VERSION_HEADER: version},
            immutable=True,
        )
        for stage in STAGES[STAGES.index(first) :]
    )


def enqueue_remaining(app: Celery, record: JobSummary) -> None:
    """Send a job's chain from its waiting stage on, under the id that its sender waits for.

    A second chain does no harm, since a stage begins once.
    """
    first_queue = record.pending_queue or stage_queue(record.stage, record.gpu_queue)
    remaining = job_chain(
        app, record.id, record.gpu_queue, record.stage, first_queue, version=record.version
    )
    # Named as its own root and parent: other jobs' tasks send it, too.
    result_id = record.result_id
    # Without this, Celery would listen for a result here, over a connection that no one reads.
    with denied_join_result():
        remaining.apply_async(task_id=result_id, root_id=result_id, parent_id=result_id)
