"""Celery results of ended jobs: each result that follows a job gets the job's end.

The worker that ends a job stores the first one, as Celery does for every task. The job's end and
its entry in ``keys.UNSTORED_RESULTS`` are one change, so that the maintenance stores all of them:
those of later messages, and the first one of a job that no task has ended or whose worker was lost.
"""

import logging
from typing import Any, cast

from celery import Celery
from redis import Redis

from tasks.contract import STAGES
from tasks.state import scripts
from tasks.state.job_reader import JobReader
from tasks.state.keys import UNSTORED_RESULTS
from tasks.state.record import JobSummary

logger = logging.getLogger(__name__)

# Bounds a round of the maintenance: each result takes four commands.
_STORED_AT_ONCE = 100


def final_answer(job: JobSummary) -> dict[str, Any]:
    """Return the result of an ended job's ``training.submit``.

    Raises:
        JobError: The job ended with this error.
    """
    failure = job.failure()
    if failure is not None:
        raise failure
    return {"job_id": job.id, "stage": STAGES[-1], **(job.result or {})}


def store_results(app: Celery, job: JobSummary) -> None:
    """Store an ended job's result under every id that follows it."""
    failure = job.failure()
    result = final_answer(job) if failure is None else failure
    state = "SUCCESS" if failure is None else "FAILURE"
    for result_id in (job.result_id, *job.other_result_ids):
        app.backend.store_result(result_id, result, state)


class UnstoredResults:
    """Stores the results of ended jobs.

    Args:
        client: A connection to the broker that decodes responses.
        app: The application, with its result backend.
    """

    def __init__(self, client: Redis, app: Celery) -> None:
        self._redis, self._app, self._jobs = client, app, JobReader(client)

    def store(self) -> list[str]:
        """Store the results of a page of jobs, the oldest end first; return the jobs' ids."""
        page = self._redis.zrange(UNSTORED_RESULTS, 0, _STORED_AT_ONCE - 1, withscores=True)
        ended_at = dict(cast("list[tuple[str, float]]", page))
        jobs = {job.id: job for job in self._jobs.summaries(list(ended_at))}
        stored = []
        for job_id, score in ended_at.items():
            # A record that is gone or unreadable has no result; a replayed job ends again.
            if job_id in jobs and jobs[job_id].status.ended:
                store_results(self._app, jobs[job_id])
                stored.append(job_id)
            scripts.forget_results(
                self._redis, unstored_results=UNSTORED_RESULTS, job_id=job_id, ended_at=score
            )
        return stored
