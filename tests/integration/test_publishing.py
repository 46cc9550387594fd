"""Results on the Hub, and finished jobs after the loss of the broker, with a real fleet."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from celery import Celery

from tasks.state.connection import connect
from tests.integration.fleets import Fleet, free_port
from tests.tasks.destinations.hub_server import TOKEN, HubServer, serving_hub

REPO = "me/shapes"


@pytest.fixture(scope="module")
def hub() -> Iterator[HubServer]:
    with serving_hub() as server:
        yield server


@pytest.fixture(scope="module")
def own_fleet(tmp_path_factory: pytest.TempPathFactory, hub: HubServer) -> Iterator[Fleet]:
    folder = tmp_path_factory.mktemp("publishing")
    secret = folder / "secrets" / "tenants" / "default" / "hub"
    secret.parent.mkdir(parents=True)
    secret.write_text(TOKEN)
    secret.chmod(0o600)
    settings = {
        "TRAINING_SECRETS_DIR": str(folder / "secrets"),
        "TRAINING_CONSOLE_PORT": str(free_port()),
        "HF_ENDPOINT": hub.url,
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
    }
    with Fleet(folder / "home", "40gb", **settings) as running:
        yield running


def test_a_job_is_on_the_hub_and_outlives_the_broker(
    own_fleet: Fleet, hub: HubServer, job: dict[str, Any]
) -> None:
    destination = {"type": "HUB", "hub_model_id": REPO, "hub_token": "hub"}
    prompts = {"validation_prompts": ["a <b>shape</b>"], "validate_every_n_steps": 12}
    job["training"] |= {**prompts, "num_validation_images_per_prompt": 1}
    # The copy is refused at first.
    hub.fails = {"/commit/": 403}
    ran = own_fleet.submit({**job, "publish_to": [destination]}, "--watch")
    assert ran.code == 0, f"{ran}\n{own_fleet.log()}"
    result = ran.documents[-1]
    job_id = result["job_id"]
    assert "may not write" in own_fleet.status(job_id)["result"]["copies"][0]["error"]
    hub.fails = {}
    repeated = own_fleet.run("publish", job_id, "--json")
    assert repeated.code == 0, repeated
    copy = repeated.documents[0]["copies"][0]
    repo = hub.repos[REPO]
    assert copy["commit"] == repo.head
    assert repo.files["shapes.safetensors"] == Path(result["published"]).read_bytes()
    assert any(name.startswith("samples/") for name in repo.files)
    assert b"<b>" not in repo.files["README.md"].split(b"---\n")[2]
    # Base models are looked up without a token.
    assert hub.tokens <= {TOKEN, ""}
    assert TOKEN not in own_fleet.log()

    before, events = own_fleet.record(job_id), own_fleet.timed_events(job_id)
    with connect(own_fleet.broker_url) as client:
        client.flushall()
    assert own_fleet.run("status", job_id).code == 11
    assert job_id in own_fleet.run("recover", "--dry-run", "--json").documents[0]["restored"]
    assert job_id in own_fleet.run("recover", "--json").documents[0]["restored"]
    assert own_fleet.run("recover", "--json").documents[0]["restored_count"] == 0
    assert own_fleet.record(job_id) == before
    assert own_fleet.timed_events(job_id) == events
    assert json.loads(own_fleet.run("list", "--json").out)[0]["id"] == job_id
    with Celery(broker=own_fleet.broker_url, backend=own_fleet.broker_url) as app:
        found = app.AsyncResult(before.result_id).get(timeout=5)
    assert found["sha256"] == result["sha256"]
    key = (own_fleet.home / "console-key").read_text().strip()
    files = httpx2.get(
        f"{own_fleet.console}/v1/jobs/{job_id}/files",
        headers={"Authorization": f"Bearer {key}"},
    )
    assert files.status_code == 200, files.text
    assert files.json()["files"][0]["sha256"] == result["sha256"]
