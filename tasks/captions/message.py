"""The message that a caption run is sent to workers by."""

from celery import Celery

from tasks.captions.runs import CaptionRun
from tasks.contract import CAPTION


def send_run(app: Celery, run: CaptionRun) -> None:
    """Send a run. A second message does no harm: a lease lets one worker carry the run out.

    Raises:
        kombu.exceptions.OperationalError: The broker is unavailable.
    """
    request = run.request
    app.send_task(
        CAPTION,
        (run.id,),
        queue=request.queue,
        task_id=run.id,
        ignore_result=True,
        argsrepr=f"captions={run.id} tenant={request.tenant}",
        kwargsrepr="{}",
    )
