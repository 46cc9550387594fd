"""A fleet whose jobs take longer than they are kept."""

from datetime import timedelta
from pathlib import Path
from typing import Any

from redis import Redis

from tasks.state.connection import connect
from tasks.state.control import JobControl
from tasks.state.record import JobRecord
from tests.integration.conftest import short_job
from tests.integration.fleets import PATIENCE_S, Fleet
from tests.waiting import wait_until
from worker.miniature.dataset import draw_dataset

TTL_S = 3


def test_running_and_paused_jobs_outlive_the_ttl(tiny_model: Path, tmp_path: Path) -> None:
    draw_dataset(tmp_path / "images")
    job: dict[str, Any] = short_job(tiny_model, tmp_path / "images")
    with Fleet(tmp_path / "fleet", "40gb", TRAINING_JOB_TTL=str(TTL_S)) as fleet:
        paused = fleet.submit(job).documents[0]["job_id"]
        assert fleet.run("pause", paused).code == 0
        wait_until(
            lambda: fleet.record(paused).status == "paused",
            timeout_s=PATIENCE_S,
            description="its running stage has stopped",
            detail=fleet.log,
        )
        running = fleet.submit(job).documents[0]["job_id"]
        with connect(fleet.broker_url) as client:
            assert _follow(fleet, client, running, {running, paused}) > TTL_S
            assert fleet.run("resume", paused).code == 0
            _follow(fleet, client, paused, {paused})
            wait_until(
                lambda: not list(client.scan_iter("training:job*")),
                timeout_s=PATIENCE_S,
                description="no key of a job is left",
            )


def _follow(fleet: Fleet, client: Redis, job_id: str, listed: set[str]) -> float:
    """Check that jobs are listed until one has succeeded; return the seconds that it took."""
    control = JobControl(client, timedelta(hours=1))
    last: list[JobRecord] = []

    def has_ended() -> bool:
        in_flight = [summary.id for summary in control.summaries_in_flight()]
        last[:] = [record := fleet.record(job_id)]
        assert record.status.ended or in_flight == [job_id]
        assert listed <= set(map(str, client.zrange("training:jobs", 0, -1)))
        return record.status.ended

    wait_until(has_ended, timeout_s=PATIENCE_S, description="the job ends", detail=fleet.log)
    [record] = last
    assert record.status == "succeeded"
    return (record.updated_at - record.created_at).total_seconds()
