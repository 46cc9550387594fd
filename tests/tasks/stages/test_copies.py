"""A job's results on their way to the Hub and to a bucket, by real stages."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tasks.access.tenant_secrets import TenantSecrets
from tasks.contract import record_key
from tasks.errors import ErrorCode
from tasks.events import Note
from tasks.stages.outcomes import Done, Failed, RetriedAfterDelay
from tasks.stages.prepare import prepare
from tasks.stages.publish import publish
from tasks.stages.submit import submit
from tasks.stages.worker_context import Backoff, WorkerContext
from tasks.state.job_store import JobStore
from tasks.state.record import JobStatus
from tasks.store import Store
from tests.tasks.destinations.hub_server import TOKEN, HubServer, Repo, running_hub_server
from tests.tasks.destinations.s3_server import S3Server, running_s3_server
from tests.tasks.stages.test_runner import (
    CACHES,
    TRAINED,
    ScriptedTrainer,
    empty_dataset,
    leave,
    outcome_of,
    run_stage,
    saved,
    worker_with,
)

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>':DeprecationWarning")
REPO = "me/lamp"
HUB = {"type": "HUB", "hub_model_id": REPO, "hub_token": "hub"}
BUCKET = {"type": "BUCKET", "bucket_url": "s3://people/acme", "bucket_credentials": "bucket"}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    with running_hub_server(monkeypatch) as server:
        yield server


@pytest.fixture
def s3() -> Iterator[S3Server]:
    with running_s3_server() as server:
        yield server


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store((tmp_path / "store").as_uri())


@pytest.fixture
def worker(
    state: JobStore, store: Store, tmp_path: Path, hub: HubServer, s3: S3Server
) -> WorkerContext:
    own = tmp_path / "secrets" / "tenants" / "acme"
    own.mkdir(parents=True)
    (own / "hub").write_text(TOKEN)
    keys: dict[str, Any] = {"access_key_id": "tenant", "secret_access_key": "hidden"}
    keys |= {"roots": ["s3://people/acme"], "endpoint": f"http://{s3.host}"}
    (own / "bucket").write_text(json.dumps(keys))
    made = worker_with(state, store, tmp_path, ScriptedTrainer())
    return replace(
        made,
        secrets=TenantSecrets(tmp_path / "secrets"),
        hub_endpoint=hub.url,
        read_policy=replace(made.read_policy, hosts=frozenset({s3.host})),
    )


def trained(
    worker: WorkerContext, document: dict[str, Any], *destinations: dict[str, Any], **fields: Any
) -> str:
    """A job of acme that is ready to be published."""
    document |= {"tenant": "acme", "publish_to": list(destinations), **fields}
    document["training"] |= dict.fromkeys(CACHES, False)
    job_id = submit(document, worker.state, "result").job_id
    store = worker.store
    run_stage("prepare", leave(dataset=empty_dataset(store)), job_id, worker)
    run_stage("cache", leave(), job_id, worker)
    left = leave(trained=TRAINED, checkpoints=(saved(store, 20),))
    run_stage("train", left, job_id, worker)
    return job_id


def notes(worker: WorkerContext, job_id: str) -> list[str]:
    return [it.message for _, it in worker.state.events(job_id) if isinstance(it, Note)]


def test_results_are_copied_to_every_destination(
    worker: WorkerContext, hub: HubServer, s3: S3Server, job_document: dict[str, Any]
) -> None:
    job_id = trained(worker, job_document, HUB, BUCKET)
    result = run_stage("publish", publish, job_id, worker)
    on_hub, in_bucket = result["copies"]
    assert on_hub["commit"] == hub.repos[REPO].head
    assert on_hub["url"] == f"{hub.url}/{REPO}"
    assert in_bucket["url"] == f"s3://people/acme/{job_id}"
    assert s3.written[-1] == f"/people/acme/{job_id}/manifest.json"
    record = worker.state.get(job_id)
    assert record.status == JobStatus.SUCCEEDED
    assert [copy.error for copy in record.artifacts.copies] == [None, None]
    # No secret is in the record, the events, or anything else of the job.
    texts = json.dumps(worker.state._redis.hgetall(record_key(job_id))) + str(
        [event for _, event in worker.state.events(job_id)]
    )
    assert TOKEN not in texts
    assert "hidden" not in texts


def test_a_refused_copy_fails_no_job(
    worker: WorkerContext, hub: HubServer, s3: S3Server, job_document: dict[str, Any]
) -> None:
    job_id = trained(worker, job_document, HUB, BUCKET)
    hub.repos[REPO] = Repo(private=True)
    hub.fails = {"/commit/": 403}
    result = run_stage("publish", publish, job_id, worker)
    assert "may not write to me/lamp" in result["copies"][0]["error"]
    assert result["copies"][1]["error"] is None
    assert worker.state.get(job_id).status == JobStatus.SUCCEEDED
    assert any("are not copied to me/lamp" in note for note in notes(worker, job_id))


def test_an_unavailable_destination_is_retried_and_the_others_once(
    worker: WorkerContext, hub: HubServer, s3: S3Server, job_document: dict[str, Any]
) -> None:
    patient = replace(worker, backoff=Backoff(max_retries=1, first_s=0.01))
    job_id = trained(worker, job_document, BUCKET, HUB)
    hub.repos[REPO] = Repo(private=True)
    hub.fails = {"/commit/": 503}
    assert isinstance(outcome_of("publish", publish, job_id, patient), RetriedAfterDelay)
    s3.written.clear()
    # The last try: the results are there, and the job succeeds without this copy.
    outcome = outcome_of("publish", publish, job_id, patient)
    assert isinstance(outcome, Done)
    assert s3.written == []
    failed = outcome.answer["copies"][1]
    assert failed["url"] is None
    assert failed["error"]


def test_a_superseded_start_publishes_nothing(
    worker: WorkerContext, hub: HubServer, job_document: dict[str, Any]
) -> None:
    job_id = trained(worker, job_document, HUB)
    hub.repos[REPO] = Repo(private=True)

    def overtaken(context: Any) -> Any:
        worker.state._redis.hset(record_key(job_id), "delivery_tag", "another")
        return publish(context)

    outcome_of("publish", overtaken, job_id, worker)
    assert len(hub.repos[REPO].commits) == 1


def test_destinations_are_checked_before_the_dataset(
    worker: WorkerContext, hub: HubServer, job_document: dict[str, Any]
) -> None:
    hub.role = "read"
    others = {"hub_model_id": "me/two", "hub_token": "missing"}
    outside = {**BUCKET, "bucket_url": "s3://people/zoo"}
    job_document |= {"tenant": "acme", "publish_to": [HUB, {**HUB, **others}, outside]}
    job_id = submit(job_document, worker.state, "result").job_id
    outcome = outcome_of("prepare", prepare, job_id, worker)
    assert isinstance(outcome, Failed)
    assert outcome.error.code == ErrorCode.INVALID_DESTINATION
    message = outcome.error.message
    assert "publish_to.0.hub_token: the token hub may only read" in message
    assert "publish_to.1.hub_token: tenants/acme/missing of TRAINING_SECRETS_DIR" in message
    assert "publish_to.2.bucket_url: s3://people/zoo is below no root" in message


def test_another_tenant_has_other_secrets(
    worker: WorkerContext, hub: HubServer, job_document: dict[str, Any]
) -> None:
    job_document |= {"tenant": "zoo", "publish_to": [HUB]}
    job_id = submit(job_document, worker.state, "result").job_id
    outcome = outcome_of("prepare", prepare, job_id, worker)
    assert isinstance(outcome, Failed)
    assert "tenants/zoo/hub of TRAINING_SECRETS_DIR" in outcome.error.message
    assert hub.tokens == set()
