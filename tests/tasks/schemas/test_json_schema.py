import json
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError
from pydantic import TypeAdapter

from tasks import contract, events
from tasks.errors import ErrorCode, InvalidJobError, JobError
from tasks.jobs.job import parse_job
from tasks.jobs.presets import preset_names
from tasks.schemas.contract_files import contract_files
from tasks.schemas.documents import RaisedError
from tasks.state.record import JobStatus
from tests.tasks.jobs.test_flux_lora import with_values

FOLDER = Path(__file__).parents[3] / "deploy" / "contract"
# The console writes its description; the others are written by people.
OTHERS = {"README.md", "example_backend.py", "openapi-python-client.yaml", "openapi.json"}
DATASET = {"type": "IMAGE_CAPTION_DIR_DATASET", "dataset_dir": "/images"}
ARTIFACT = events.Artifact(name="a", key="k", sha256="0" * 64, size=1)


def validator(name: str) -> Any:
    return Draft202012Validator(json.loads((FOLDER / f"{name}.schema.json").read_text("utf-8")))


def test_the_contract_is_current() -> None:
    there = {path.name for path in FOLDER.iterdir() if path.is_file()}
    assert there == set(contract_files()) | OTHERS
    stale = [
        name
        for name, text in contract_files().items()
        if (FOLDER / name).read_text("utf-8") != text
    ]
    assert not stale, "run: training-worker contract deploy/contract"


def test_the_guide_names_every_file() -> None:
    guide = (FOLDER / "README.md").read_text("utf-8")
    assert [
        name for name in {*contract_files(), *OTHERS} - {"README.md"} if name not in guide
    ] == []


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.schema.json")), ids=lambda path: path.stem)
def test_every_schema_is_valid(path: Path) -> None:
    Draft202012Validator.check_schema(json.loads(path.read_text("utf-8")))


def test_contract_py_has_every_status_and_error_code() -> None:
    assert set(contract.STATUSES) == set(JobStatus)
    assert set(contract.ENDED) == {status for status in JobStatus if status.ended}
    assert list(contract.ERROR_CODES) == list(ErrorCode)
    assert events.JobEnded(status="failed").kind == contract.LAST_EVENT


def test_errors_match_their_schema() -> None:
    error = JobError("no", ErrorCode.STORE, "train", retryable=True)
    assert error.args == tuple(RaisedError("no", ErrorCode.STORE, "train", True))
    assert RaisedError._fields == contract.ERROR_FIELDS
    validator("error").validate(list(error.args))
    with pytest.raises(ValidationError):
        validator("error").validate(["no", "sunspots", "train", True])


@pytest.mark.parametrize("name", preset_names())
def test_jobs_of_presets_match_the_schema(name: str) -> None:
    training: dict[str, Any] = {"data_loader": {"dataset": DATASET}}
    if "textual" in name:
        training |= {"placeholder_token": "<cat>", "initializer_token": "cat"}
        training["data_loader"]["caption_preset"] = "object"
    document = {"preset": name, "training": training}
    jobs = validator("training_job")
    jobs.validate(document)
    jobs.validate(parse_job(document).model_dump(mode="json"))


@pytest.mark.parametrize(
    "wrong",
    [
        {"training": with_values()["training"], "nmae": "cat"},
        with_values(lora_rank_dim=0),
        with_values(lora_rank_dim="four"),
        with_values(lora_rnak_dim=4),
        with_values(type="FLUX_LROA"),
        {"preset": "flux_lora_1x40gb", "training": {"lora_rnak_dim": 4}},
        {"preset": "flux_lora_1x41gb", "training": {}},
        {"name": "cat"},
    ],
    ids=["job", "bound", "kind", "option", "type", "preset's option", "preset", "no training"],
)
def test_the_fleet_refuses_what_the_schema_refuses(wrong: dict[str, Any]) -> None:
    assert not validator("training_job").is_valid(wrong)
    with pytest.raises(InvalidJobError):
        parse_job(wrong)


def test_events_match_their_schema() -> None:
    written: list[events.Event] = [
        events.JobAccepted(queue="q", reason="r"),
        events.StageStarted(stage="train", attempt=1, queue="q", worker="w"),
        events.StageFinished(stage="train", attempt=1, seconds=1.5, summary="s"),
        events.Progress(stage="train", done=1, total=2, unit="steps"),
        events.DatasetChecked(images=1, errors=0, warnings=2, report_key="k"),
        events.CheckpointSaved(step=1, state_key="k", weights=ARTIFACT),
        events.ValidationImages(step=1, images=(ARTIFACT,)),
        events.Note(level="info", message="m"),
        events.JobEnded(status="failed", message="m", code=ErrorCode.STORE),
    ]
    mapping = TypeAdapter(events.JobEvent).json_schema()["discriminator"]["mapping"]
    assert {event.kind for event in written} == set(mapping)
    for event in written:
        document = json.loads(event.model_dump_json())
        validator("event").validate(document)
        # A later version may write more fields.
        validator("event").validate({**document, "new": 1})
    assert not validator("event").is_valid({"kind": "heartbeat"})
