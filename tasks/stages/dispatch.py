"""The canvas of a job: prepare -> cache -> train -> publish, each on its queue."""

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
    """The job's chain, from a stage on.

    Its messages carry the job's id and nothing else: what stages leave for each other is in the
    job's record, where it is fenced. An explicit queue wins over every router, and retries keep
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


def send_rest(app: Celery, record: JobSummary) -> None:
    """Send a job's chain from the stage it waits for on, under the id that its sender waits for.

    A chain that is sent twice does no harm, since a stage begins once.
    """
    first_queue = record.pending_queue or stage_queue(record.stage, record.gpu_queue)
    rest = job_chain(
        app, record.id, record.gpu_queue, record.stage, first_queue, version=record.version
    )
    # Named as its own parent: it is sent from the tasks of other jobs, too.
    own = record.result_id
    # Or Celery would listen for a result here, over a connection that nobody reads.
    with denied_join_result():
        rest.apply_async(task_id=own, root_id=own, parent_id=own)
