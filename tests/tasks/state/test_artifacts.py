import pytest

from tasks.events import Artifact, CheckpointSaved
from tasks.state.artifacts import NO_ARTIFACTS, JobArtifacts

FILE = Artifact(name="lamp.safetensors", key="jobs/x/lamp", sha256="0" * 64, size=9)
SAVED = CheckpointSaved(step=10, state_key="jobs/x/state", weights=FILE)
ALL = JobArtifacts(
    read_roots=("/open", "s3://b/x"),
    dataset="datasets/d.json",
    cache_queue="cpu",
    checkpoints=(SAVED, SAVED),
)


def test_artifacts_survive_the_jobs_hash() -> None:
    assert JobArtifacts.of(ALL.hash_fields()) == ALL


def test_an_update_writes_only_what_it_sets() -> None:
    assert NO_ARTIFACTS.hash_fields() == {}
    update = JobArtifacts(dataset=None, checkpoints=())
    assert update.hash_fields() == {"artifact:dataset": "null", "artifact:checkpoints": "[]"}
    updated = ALL.updated(update)
    assert updated == ALL.model_copy(update={"dataset": None, "checkpoints": ()})
    assert JobArtifacts.of(ALL.hash_fields() | update.hash_fields()) == updated


def test_other_fields_of_the_hash_are_ignored() -> None:
    fields = {"status": "running", "artifact:of_a_newer_version": "{}"}
    assert JobArtifacts.of(fields) == JobArtifacts()


@pytest.mark.parametrize("value", ["{", "7", '["no checkpoint"]'])
def test_a_malformed_artifact_is_an_error(value: str) -> None:
    with pytest.raises(ValueError, match=r"Expecting|checkpoints"):
        JobArtifacts.of({"artifact:checkpoints": value})
