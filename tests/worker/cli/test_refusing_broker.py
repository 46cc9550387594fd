"""Commands on a broker that refuses end with exit code 6 and a sentence that names the remedy."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tasks.client import Client
from tasks.settings.settings import Settings
from tasks.state.availability import check_writes
from tasks.state.connection import connect
from tests.refusals import REFUSALS, Refusal
from tests.tasks.jobs.test_flux_lora import with_values
from tests.worker.cli.conftest import Invoke
from worker.local.embedded_broker import EmbeddedBroker
from worker.maintenance.doctor import check_all

# A job that waits; without it, "cancel" would have nothing to change.
JOB = "waiting"
CHANGES = [
    ["submit", "JOB.yaml"],
    ["cancel", JOB],
    ["pause", JOB],
    ["up"],
]
READS = [
    ["list"],
    ["status", JOB],
    ["watch", JOB],
    ["resume", JOB],
    ["drain", "--all"],
    ["durations"],
    ["dead-letter", "list"],
    ["dead-letter", "replay", JOB],
    ["cache", "list"],
    ["cache", "prune", "--max-size", "1GB"],
]
CASES = [
    *((refusal, command) for refusal in REFUSALS for command in CHANGES),
    *((refusal, command) for refusal in REFUSALS if refusal.refuses_reads for command in READS),
]
NAMES = [f"{refusal.code}-{' '.join(command)}" for refusal, command in CASES]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("refusing")


@pytest.fixture(scope="module")
def broker(home: Path) -> Iterator[EmbeddedBroker]:
    with EmbeddedBroker(home) as broker:
        client = Client(Settings(), broker.url)
        client.submit(with_values(gradient_checkpointing=True) | {"id": JOB})
        yield broker


@pytest.fixture(params=REFUSALS, ids=lambda refusal: refusal.code, scope="module")
def refusal(
    request: pytest.FixtureRequest, broker: EmbeddedBroker, home: Path
) -> Iterator[Refusal]:
    refusal: Refusal = request.param
    with connect(broker.url) as client:
        with refusal.during(client, home / "broker"):
            yield refusal
        check_writes(client)


@pytest.fixture
def job_file(tmp_path: Path) -> Path:
    path = tmp_path / "JOB.yaml"
    path.write_text(yaml.safe_dump(with_values(gradient_checkpointing=True)), "utf-8")
    return path


@pytest.mark.parametrize(("refusal", "command"), CASES, ids=NAMES, indirect=["refusal"])
def test_a_command_reports_the_refusal(
    refusal: Refusal, broker: EmbeddedBroker, command: list[str], invoke: Invoke, job_file: Path
) -> None:
    command = [str(job_file) if word == job_file.name else word for word in command]
    *_, error, end = invoke(*command, code=6, TRAINING_BROKER_URL=broker.url).split("\n")
    assert error.startswith(f'error: the broker is unavailable: it replies "{refusal.code} ')
    assert end == ""


def test_the_doctor_reports_the_refusal(
    refusal: Refusal, broker: EmbeddedBroker, invoke: Invoke
) -> None:
    output = invoke("doctor", "--json", code=1, TRAINING_BROKER_URL=broker.url)
    found = [finding for finding in json.loads(output) if refusal.code in finding["message"]]
    assert [finding["level"] for finding in found] == ["error"]
    assert found[0]["remedy"]


def test_the_fleets_own_broker_is_found_while_it_refuses(
    refusal: Refusal, broker: EmbeddedBroker, home: Path
) -> None:
    findings = check_all(Settings(home=home, gpus="40gb", flower_port=0))
    [found] = [each for each in findings if refusal.code in each.message]
    assert found.level == "error"
