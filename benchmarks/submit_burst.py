"""Delay of one tenant's jobs while another tenant submits thousands.

    python -m benchmarks.submit_burst [--jobs 2000] [--report benchmarks/RESULTS.md]

A backend sends all its submits at once, to a fleet of one CPU worker and one GPU worker whose
stages do nothing. Meanwhile jobs of another tenant pass their four stages, one after another. The
delay of a stage is the time from the end of the one before it, or from the submit, to its start.
Goal: under two seconds for each.
"""

import statistics
from collections import defaultdict
from datetime import timedelta
from uuid import uuid4

from celery import Celery

from benchmarks.control_plane import job, running_side
from benchmarks.results import parser_of, report_result
from tasks.contract import STAGES, SUBMIT, SUBMIT_QUEUE
from tasks.stages.submit import submit
from tasks.state.job_store import JobStore
from tasks.state.record import JobRecord
from tasks.state.tenants.tenant_queues import TenantQueues
from tests.waiting import wait_until

_TTL = timedelta(hours=1)
_GOAL_S = 2.0


def main() -> None:
    """Measure and print."""
    parser = parser_of(__doc__)
    parser.add_argument("--jobs", type=int, default=2000)
    arguments = parser.parse_args()
    lines = _measure(arguments.jobs)
    command = f"python -m benchmarks.submit_burst --jobs {arguments.jobs}"
    goal = f"every stage of the other tenant's jobs begins within {_GOAL_S:g} s"
    report_result(arguments.report, "Burst of submits", command, goal, lines)


def _measure(count: int) -> list[str]:
    with running_side("training-worker") as (side, url):
        backend = Celery(broker=url, backend=url, set_as_current=False)
        jobs, queues = JobStore(side.redis, _TTL), TenantQueues(side.redis, _TTL)
        side.burst(10)  # warms up
        for _ in range(count):
            backend.send_task(SUBMIT, args=[job("big")], queue=SUBMIT_QUEUE)
        delays: defaultdict[str, list[float]] = defaultdict(list)
        left: list[int] = []
        while waiting := int(side.redis.llen(SUBMIT_QUEUE)):
            left.append(waiting)
            job_id = submit(job("small"), jobs, uuid4().hex).job_id
            queues.dispatch()
            wait_until(
                lambda: jobs.get(job_id).status.ended,  # noqa: B023
                timeout_s=60,
                description="the small tenant's job has ended",
            )
            for stage, delay_s in _delays(jobs.get(job_id)).items():
                delays[stage].append(delay_s)
    listed = [
        f"{stage} {statistics.median(delays[stage]):.2f} and {max(delays[stage]):.2f}"
        for stage in STAGES
    ]
    return [
        f"{len(left)} jobs of the other tenant began and ended while {count} submits were being "
        f"recorded, the first with {left[0]} left and the last with {left[-1]}",
        f"delay of their stages in seconds, median and maximum: {', '.join(listed)}",
    ]


def _delays(record: JobRecord) -> dict[str, float]:
    """Return the seconds that each stage of an ended job waited."""
    ready_at, delays = record.created_at.timestamp(), {}
    for stage in STAGES:
        start = record.stages[stage]
        delays[stage] = start.started_at - ready_at
        ready_at = start.started_at + (start.seconds or 0.0)
    return delays


if __name__ == "__main__":
    main()
