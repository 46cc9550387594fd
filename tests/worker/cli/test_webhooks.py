import json
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from tasks.stages.submit import submit
from tasks.state.job_store import JobStore
from tasks.state.tenants.webhook_secrets import WebhookSecrets
from tests.worker.cli.conftest import Invoke

URL = "https://hooks.example/training?token=hidden"


@pytest.fixture
def job_id(state: JobStore, redis_client: Redis, job_document: dict[str, Any]) -> str:
    """A job with a pending delivery."""
    WebhookSecrets(redis_client).create("default")
    webhook = {"url": URL, "events": ["accepted"]}
    return submit({**job_document, "webhook": webhook}, state, "result").job_id


def test_a_secret_is_created_listed_and_revoked(
    invoke: Invoke, redis_client: Redis, broker_url: str
) -> None:
    def run(*arguments: str, code: int = 0) -> str:
        command = ("webhooks", "secret", *arguments, "--tenant", "acme")
        return invoke(*command, code=code, TRAINING_BROKER_URL=broker_url)

    secret = run("create").strip()
    assert WebhookSecrets(redis_client).signing("acme") == [secret]
    entry = json.loads(run("create", "--json"))
    assert entry["secret"].startswith("whsec_")
    assert (
        "revoke the older one first"
        in json.loads(run("create", "--json", code=18))["error"]["message"]
    )
    listed = run("list", "--json")
    assert "whsec_" not in listed
    assert [each["id"] for each in json.loads(listed)][1] == entry["id"]
    assert f"webhook secret {entry['id']} of tenant acme is revoked" in run("revoke", entry["id"])
    assert (
        "has no webhook secret nothing"
        in json.loads(run("revoke", "nothing", "--json", code=18))["error"]["message"]
    )
    audit = invoke("audit", "--json", TRAINING_BROKER_URL=broker_url)
    assert "webhook_secret.revoke" in audit
    assert "whsec_" not in audit


def test_a_tenant_must_have_a_name(invoke: Invoke, broker_url: str) -> None:
    arguments = ("webhooks", "secret", "create", "--tenant", "a:b", "--json")
    error = json.loads(invoke(*arguments, code=2, TRAINING_BROKER_URL=broker_url))["error"]
    assert error["message"].startswith("the tenant must be letters")


def test_deliveries_are_listed_and_repeated(
    invoke: Invoke, redis_client: Redis, broker_url: str, job_id: str
) -> None:
    def run(*arguments: str, code: int = 0) -> str:
        return invoke("webhooks", *arguments, code=code, TRAINING_BROKER_URL=broker_url)

    shown = run("list", job_id)
    assert "accepted" in shown
    assert "hidden" not in shown
    [delivery] = json.loads(run("list", job_id, "--json"))
    assert (delivery["sequence"], delivery["status"]) == (1, "pending")
    assert json.loads(run("redeliver", job_id, "--json"))["redelivered"] == []
    assert json.loads(run("redeliver", job_id, "1", "--json"))["redelivered"] == [1]
    run("redeliver", job_id, "2", code=18)
    run("list", "unknown", code=11)


def test_no_command_shows_the_whole_address(invoke: Invoke, broker_url: str, job_id: str) -> None:
    for command in (("status", job_id), ("list",)):
        shown = invoke(*command, "--json", TRAINING_BROKER_URL=broker_url)
        assert job_id in shown
        assert "hidden" not in shown


def test_a_dry_run_names_a_missing_secret(
    invoke: Invoke,
    redis_client: Redis,
    broker_url: str,
    job_document: dict[str, Any],
    tmp_path: Path,
) -> None:
    file = tmp_path / "job.json"
    file.write_text(json.dumps({**job_document, "webhook": {"url": URL}}))
    arguments = ("submit", str(file), "--dry-run", "--json")
    shown = invoke(*arguments, code=3, TRAINING_BROKER_URL=broker_url)
    assert "tenant default has no webhook secret" in json.loads(shown)["error"]["message"]
    assert "hidden" not in shown
    WebhookSecrets(redis_client).create("default")
    shown = invoke(*arguments, code=5, TRAINING_BROKER_URL=broker_url)
    assert json.loads(shown)["error"]["code"] == "invalid_model"
