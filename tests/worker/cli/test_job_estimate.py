import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import SecretStr
from redis import Redis

from routing.classes import MemoryClass
from tasks.eta.estimate import TAKES_LONGER, Forecast, StageForecast
from tasks.eta.history import RunHistoryStore
from tasks.eta.rate_meter import WorkDone
from tasks.events import Note
from tasks.settings.settings import Settings
from tasks.state.record import JobStatus
from tasks.state.workers import WorkerHeartbeat, WorkerInfo
from tests.tasks.eta.test_history import begun, record_with
from worker.cli.client import client_of
from worker.cli.commands import route, times
from worker.cli.follow import waiting_note
from worker.cli.job_estimate import left_line, span

HOUR = timedelta(hours=1)


@pytest.fixture
def settings(tmp_path: Path, broker_url: str, redis_client: Redis) -> Settings:
    return Settings(home=tmp_path, broker_url=SecretStr(broker_url))


@pytest.fixture
def document(job_document: dict[str, Any]) -> dict[str, Any]:
    job_document["training"] |= {"max_train_steps": 100, "max_train_epochs": None}
    return job_document


@pytest.fixture
def job_file(tmp_path: Path, document: dict[str, Any]) -> Path:
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump(document), "utf-8")
    return path


@pytest.fixture
def trained(redis_client: Redis, document: dict[str, Any]) -> None:
    """One job has waited 90 s and trained 50 steps of 2 s after 20 s."""
    job = record_with(document, stages={"cache": begun(2, 1000, 10, "gpu.40gb")})
    durations = RunHistoryStore(redis_client, HOUR, MemoryClass.GB40)
    durations.record(job, "train", begun(3, 1100, 120, "gpu.40gb"), WorkDone(50, 2.0))


@pytest.mark.usefixtures("trained")
def test_what_was_learned_is_listed(settings: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    times.run(settings, json=True)
    assert json.loads(capsys.readouterr().out) == {
        "stages": [
            {
                "stage": "train",
                "type": "FLUX_LORA",
                "memory_class": "40gb",
                "resolution": "768x768",
                "samples": 4,
                "runs": 1,
                "unit": "step",
                "unit_s": 2,
                "unit_s_p90": 2,
                "rest_s": 20,
            }
        ],
        "waits": [{"queue": "gpu.40gb", "waits": 1, "wait_s": 90, "wait_s_p90": 90}],
    }
    times.run(settings, json=False)
    shown = " ".join(capsys.readouterr().out.split())
    assert "FLUX_LORA" in shown
    assert "1 min 30 s" in shown


def test_a_fleet_that_has_done_nothing_says_so(
    settings: Settings, job_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    times.run(settings, json=False)
    assert capsys.readouterr().out == "no run has finished yet\n"
    route.run(settings, path=job_file, json=False)
    assert "not known: there is no finished run to learn from" in capsys.readouterr().out


@pytest.mark.usefixtures("trained")
def test_a_route_tells_what_the_job_takes_there(
    settings: Settings, job_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    route.run(settings, path=job_file, json=True)
    told = json.loads(capsys.readouterr().out)
    assert told["queue"] == "gpu.40gb"
    train = told["expected"]["stages"][2]
    assert (train["wait_s"], train["seconds"], train["runs"]) == (90, 220, 1)
    assert told["expected"]["total_s"] is None
    route.run(settings, path=job_file, json=False)
    shown = capsys.readouterr().out
    assert "3 min 40 s" in shown
    assert "at least" in shown


def test_without_a_broker_a_route_is_told_all_the_same(
    tmp_path: Path, job_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    alone = Settings(home=tmp_path / "empty", broker_url=None)
    route.run(alone, path=job_file, json=True)
    told = json.loads(capsys.readouterr().out)
    assert told["queue"] == "gpu.40gb"
    assert told["expected"] is None
    assert "there is no broker" in told["no_fleet"]
    route.run(alone, path=job_file, json=False)
    assert "no fleet was asked how long the job takes" in capsys.readouterr().out


@pytest.mark.usefixtures("trained")
def test_a_job_that_waits_is_told_how_long_others_have_waited(
    settings: Settings, redis_client: Redis, document: dict[str, Any]
) -> None:
    client = client_of(settings)
    waiting = record_with(document, stage="train", pending_queue="gpu.40gb")
    unserved = waiting_note(client, waiting)
    assert unserved is not None
    assert "no live worker serves gpu.40gb" in unserved.message
    presence = WorkerInfo(queues=("gpu.40gb", "cpu"), memory_class=MemoryClass.GB40)
    WorkerHeartbeat(redis_client, "gpu@here", presence, HOUR).renew()
    message = (
        "train waits in gpu.40gb for a free worker; the last 1 wait(s) there: median 1 min 30 s, "
        "90 % within 1 min 30 s"
    )
    assert waiting_note(client, waiting) == Note(level="info", message=message)
    paused = waiting.model_copy(update={"status": JobStatus.PAUSED})
    assert waiting_note(client, paused) is None
    assert waiting_note(client, record_with(document, pending_queue="cpu")) is None
    assert waiting_note(client, record_with(document)) is None


def test_what_is_left_is_told_in_a_line() -> None:
    now = datetime(2026, 1, 1, tzinfo=UTC)
    end = (now + timedelta(seconds=660)).astimezone()
    train = StageForecast("train", "gpu.40gb", 0.0, 0, 600.0)
    publish = StageForecast("publish", "cpu", None, 0, 60.0)
    soon = StageForecast("publish", "cpu", 0.0, 1, 60.0)
    waits = StageForecast("train", "gpu.40gb", 30.0, 1, 570.0)
    assert left_line(Forecast((train, soon)), now) == (
        f"10 min of train, 11 min in all, until {end:%m-%d %H:%M}"
    )
    assert left_line(Forecast((waits, soon)), now).startswith("30 s until train begins, 11 min")
    assert left_line(Forecast((train, publish)), now) == "at least 11 min; not known: wait in cpu"
    late = StageForecast("train", "gpu.40gb", 0.0, 0, None, unknown=TAKES_LONGER)
    assert left_line(Forecast((late, soon)), now) == (
        "at least 1 min; not known: train; train takes longer than the runs before it"
    )


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0, "0 s"),
        (0.0312, "0.031 s"),
        (45.4, "45 s"),
        (59.9, "1 min"),
        (113, "1 min 53 s"),
        (7500, "2 h 5 min"),
        (90000, "1 d 1 h"),
    ],
)
def test_spans_are_told_in_two_units_at_the_most(seconds: float, said: str) -> None:
    assert span(seconds) == said
