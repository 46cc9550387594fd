import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import SecretStr
from redis import Redis

from routing.classes import GIB, MemoryClass
from tasks.eta.estimate import NO_RUN, TAKES_LONGER, Forecast, StageForecast
from tasks.eta.history import RunHistoryStore, WorkDone
from tasks.events import Note, TrainDone
from tasks.settings.settings import Settings
from tasks.stages.submit import submit
from tasks.state.artifacts import JobArtifacts
from tasks.state.job_store import JobStore
from tasks.state.record import JobStatus
from tasks.state.workers import WorkerHeartbeat, WorkerInfo
from tests.tasks.eta.test_history import record_with, started
from tests.worker.cli.conftest import Invoke
from worker.cli.client import client_of
from worker.cli.reports.follow import waiting_note
from worker.cli.reports.job_report import time_left_text
from worker.cli.reports.output import duration_text

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
    job = record_with(document, stages={"cache": started(2, 1000, 10, "gpu.40gb")})
    durations = RunHistoryStore(redis_client, HOUR, MemoryClass.GB40)
    durations.record_run(job, "train", started(3, 1100, 120, "gpu.40gb"), WorkDone(50, 2.0))


@pytest.mark.usefixtures("trained")
def test_durations_lists_finished_runs(invoke: Invoke, broker_url: str) -> None:
    document = invoke("durations", "--json", TRAINING_BROKER_URL=broker_url)
    assert json.loads(document) == {
        "stages": [
            {
                "stage": "train",
                "type": "FLUX_LORA",
                "memory_class": "40gb",
                "resolution": "768x768",
                "samples": 4,
                "emulated": False,
                "runs": 1,
                "unit": "step",
                "unit_s": 2,
                "unit_s_p90": 2,
                "overhead_s": 20,
            }
        ],
        "queues": [{"queue": "gpu.40gb", "waits": 1, "wait_s": 90, "wait_s_p90": 90}],
    }
    shown = " ".join(invoke("durations", TRAINING_BROKER_URL=broker_url).split())
    assert "FLUX_LORA" in shown
    assert "1 min 30 s" in shown


@pytest.mark.usefixtures("redis_client")
def test_a_new_fleet_shows_published_speeds(
    invoke: Invoke, job_file: Path, broker_url: str
) -> None:
    shown = invoke("durations", TRAINING_BROKER_URL=broker_url)
    assert shown == "no run has finished yet\n"
    shown = " ".join(invoke("route", str(job_file), TRAINING_BROKER_URL=broker_url).split())
    assert "published for an A40" in shown
    assert NO_RUN in shown
    document = json.loads(invoke("route", str(job_file), "--json", TRAINING_BROKER_URL=broker_url))
    assert document["emulated"] is False
    bases = [stage["basis"] for stage in document["expected"]["stages"]]
    assert bases == [None, None, "published", None]


@pytest.mark.usefixtures("redis_client")
def test_route_says_that_a_class_is_emulated(
    invoke: Invoke, job_file: Path, redis_client: Redis, broker_url: str
) -> None:
    info = WorkerInfo(queues=("gpu.40gb",), memory_class=MemoryClass.GB40)
    WorkerHeartbeat(redis_client, "gpu", info, HOUR).renew()
    document = json.loads(invoke("route", str(job_file), "--json", TRAINING_BROKER_URL=broker_url))
    assert document["emulated"] is True
    assert document["expected"]["stages"][2]["seconds"] is None
    shown = " ".join(invoke("route", str(job_file), TRAINING_BROKER_URL=broker_url).split())
    assert "emulated on CPUs" in shown


@pytest.mark.usefixtures("trained")
def test_route_estimates_durations(invoke: Invoke, job_file: Path, broker_url: str) -> None:
    document = json.loads(invoke("route", str(job_file), "--json", TRAINING_BROKER_URL=broker_url))
    assert document["queue"] == "gpu.40gb"
    train = document["expected"]["stages"][2]
    assert (train["wait_s"], train["seconds"], train["runs"]) == (90, 220, 1)
    assert document["expected"]["total_s"] is None
    shown = invoke("route", str(job_file), TRAINING_BROKER_URL=broker_url)
    assert "3 min 40 s" in shown
    assert "at least" in shown


def test_route_needs_no_broker(invoke: Invoke, job_file: Path) -> None:
    document = json.loads(invoke("route", str(job_file), "--json"))
    assert document["queue"] == "gpu.40gb"
    assert document["expected"] is None
    assert "there is no broker" in document["unavailable_reason"]
    assert "no duration estimate: there is no broker" in invoke("route", str(job_file))


@pytest.mark.usefixtures("trained")
def test_a_waiting_job_shows_the_usual_wait(
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
        "train waits in gpu.40gb for a free worker; the last 1 wait there: median 1 min 30 s, "
        "90 % within 1 min 30 s"
    )
    assert waiting_note(client, waiting) == Note(level="info", message=message)
    paused = waiting.model_copy(update={"status": JobStatus.PAUSED})
    assert waiting_note(client, paused) is None
    assert waiting_note(client, record_with(document, pending_queue="cpu")) is None
    assert waiting_note(client, record_with(document)) is None


def test_time_left_is_one_line() -> None:
    now = datetime(2026, 1, 1, tzinfo=UTC)
    end = (now + timedelta(seconds=660)).astimezone()
    train = StageForecast("train", "gpu.40gb", 0.0, 0, 600.0)
    publish = StageForecast("publish", "cpu", None, 0, 60.0)
    soon = StageForecast("publish", "cpu", 0.0, 1, 60.0)
    waits = StageForecast("train", "gpu.40gb", 30.0, 1, 570.0)
    assert time_left_text(Forecast((train, soon)), now) == (
        f"10 min of train, 11 min in total, until {end:%m-%d %H:%M}"
    )
    assert time_left_text(Forecast((waits, soon)), now).startswith(
        "30 s until train starts, 11 min"
    )
    assert (
        time_left_text(Forecast((train, publish)), now) == "at least 11 min; unknown: wait in cpu"
    )
    late = StageForecast("train", "gpu.40gb", 0.0, 0, None, unknown=TAKES_LONGER)
    assert time_left_text(Forecast((late, soon)), now) == (
        "at least 1 min; unknown: train; train takes longer than the runs before it"
    )


@pytest.mark.parametrize(
    ("seconds", "text"),
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
def test_durations_have_at_most_two_units(seconds: float, text: str) -> None:
    assert duration_text(seconds) == text


def test_status_shows_estimated_and_peak_memory(
    invoke: Invoke, state: JobStore, document: dict[str, Any], broker_url: str
) -> None:
    def shown(*arguments: str) -> str:
        return invoke("status", *arguments, TRAINING_BROKER_URL=broker_url)

    job_id = submit(document, state, "result").job_id
    estimate = state.get(job_id).estimate
    assert (
        f"GPU memory: {estimate.needed_gib:.1f} GiB estimated, 57 of 57 blocks recomputed\n"
        in shown(job_id)
    )
    _, token, *_ = state.begin(job_id, "prepare", worker="w", queue="q", tag="t")
    done = TrainDone(steps=1, final_loss=1, peak_memory_bytes=30 * GIB)
    note = Note(level="info", message="done")
    state.write(job_id, token, [note], JobArtifacts(trained=done))
    assert " GiB estimated, 30.0 GiB at its peak, 57 of 57 blocks recomputed\n" in shown(job_id)
    status = json.loads(shown(job_id, "--json"))
    assert status["gpu_memory"] == {
        "estimated_bytes": estimate.needed_bytes,
        "peak_bytes": 30 * GIB,
        "checkpointed_blocks": 57,
    }
    assert status["estimate"]["weights_gib"] == estimate.weights_gib
