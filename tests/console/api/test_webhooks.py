import httpx2
import pytest

from tests.console.conftest import Console, job

WEBHOOK = {"url": "https://hooks.example/training?token=hidden", "events": ["accepted"]}


def test_a_secret_is_shown_once_and_rotated(
    acme: httpx2.Client, operator: httpx2.Client, zoo: httpx2.Client
) -> None:
    created = acme.post("/webhook-secrets")
    assert created.status_code == 201
    first = created.json()
    assert first["secret"].startswith("whsec_")
    second = operator.post("/webhook-secrets", params={"tenant": "acme"}).json()
    assert acme.post("/webhook-secrets").status_code == 409
    listed = acme.get("/webhook-secrets")
    assert [entry["id"] for entry in listed.json()["secrets"]] == [first["id"], second["id"]]
    assert "whsec_" not in listed.text
    assert zoo.get("/webhook-secrets").json() == {"secrets": []}
    assert zoo.delete(f"/webhook-secrets/{first['id']}").status_code == 404
    assert acme.delete(f"/webhook-secrets/{first['id']}").status_code == 204
    assert acme.delete(f"/webhook-secrets/{first['id']}").status_code == 404
    audit = operator.get("/audit", params={"action": "webhook_secret"})
    actions = [(entry["actor"], entry["action"]) for entry in audit.json()["entries"]]
    assert actions[0] == ("key acme", "webhook_secret.revoke")
    assert actions.count(("key acme", "webhook_secret.create")) == 3  # one of them failed
    assert "whsec_" not in audit.text


def test_only_the_own_tenant_has_secrets(acme: httpx2.Client, operator: httpx2.Client) -> None:
    assert acme.post("/webhook-secrets", params={"tenant": "zoo"}).status_code == 403
    for query in ({}, {"tenant": "../acme"}):
        answer = operator.post("/webhook-secrets", params=query)
        assert answer.status_code == 422
        assert [problem["location"] for problem in answer.json()["errors"]] == ["tenant"]


def test_a_webhook_without_a_secret_is_refused(acme: httpx2.Client) -> None:
    for path in ("/jobs", "/jobs:preview?check_dataset=false"):
        answer = acme.post(path, json=job(webhook=WEBHOOK))
        assert answer.status_code == 422
        [problem] = answer.json()["errors"]
        assert problem["location"] == "webhook"
        assert "tenant acme has no webhook secret" in problem["message"]
        assert "POST /v1/webhook-secrets" in problem["remedy"]


@pytest.mark.parametrize(
    ("webhook", "location", "message"),
    [
        ({"url": "http://hooks.example/"}, "webhook.url", "is not encrypted"),
        ({"url": "https://user:hidden@hooks.example/"}, "webhook.url", "has a user or a password"),
        ({"url": "https://10.0.0.1/"}, "webhook.url", "is not public"),
        ({"url": "https://127.1/"}, "webhook.url", "is not public"),
        ({"url": "https://2130706433/"}, "webhook.url", "is not public"),
        ({"url": "https://[::ffff:127.0.0.1]/"}, "webhook.url", "is not public"),
        ({"url": "https://[fd00::1]/"}, "webhook.url", "is not public"),
        ({"url": "https://169.254.169.254/latest"}, "webhook.url", "is not public"),
        ({"url": "https:///path"}, "webhook.url", "is not an address"),
        ({"url": "https://hooks.example:0/"}, "webhook.url", "is not an address"),
        ({"url": "https://hooks.example/\r\nX: y"}, "webhook.url", "is not an address"),
        ({"url": "https://hooks.example/#here"}, "webhook.url", "has a fragment"),
        ({"url": f"https://hooks.example/{'x' * 2000}"}, "webhook.url", "at most 2000 characters"),
        ({**WEBHOOK, "events": []}, "webhook.events", "must have a value"),
        ({**WEBHOOK, "events": ["ended"]}, "webhook.events.0", "must be "),
        ({**WEBHOOK, "progress_interval": 1}, "webhook.progress_interval", "at least 10"),
        ({**WEBHOOK, "secret": "whsec_hidden"}, "webhook.secret", "is not an option"),
    ],
)
def test_an_invalid_webhook_is_refused_without_showing_it(
    acme: httpx2.Client, webhook: dict[str, object], location: str, message: str
) -> None:
    answer = acme.post("/jobs", json=job(webhook=webhook))
    assert answer.status_code == 422
    [problem] = answer.json()["errors"]
    assert problem["location"] == location
    assert message in problem["message"]
    assert "hidden" not in answer.text


def test_deliveries_are_listed_and_repeated_for_their_owner(
    acme: httpx2.Client, zoo: httpx2.Client, operator: httpx2.Client, console: Console
) -> None:
    acme.post("/webhook-secrets")
    created = acme.post("/jobs", json=job(webhook=WEBHOOK))
    assert created.status_code == 201, created.text
    job_id = created.json()["id"]
    [delivery] = acme.get(f"/jobs/{job_id}/deliveries").json()["deliveries"]
    assert (delivery["sequence"], delivery["event"]) == (1, "accepted")
    assert (delivery["status"], delivery["attempts"]) == ("pending", 0)
    again = acme.post(f"/jobs/{job_id}/deliveries/1:redeliver")
    assert again.status_code == 200
    assert again.json()["deliveries"][0]["status"] == "pending"
    assert acme.post(f"/jobs/{job_id}/deliveries/2:redeliver").status_code == 409
    assert zoo.get(f"/jobs/{job_id}/deliveries").status_code == 404
    assert zoo.post(f"/jobs/{job_id}/deliveries/1:redeliver").status_code == 404
    audit = operator.get("/audit", params={"action": "webhook.redeliver"}).json()
    assert audit["entries"][-1]["details"] == {"sequence": 1}
    record = console.state.get(job_id)
    assert record.job.webhook is not None
    assert record.job.webhook.url == WEBHOOK["url"]
    for shown in (acme.get(f"/jobs/{job_id}").text, record.model_dump_json(), repr(record)):
        assert "hidden" not in shown


def test_the_same_job_again_is_known_by_its_whole_webhook(acme: httpx2.Client) -> None:
    acme.post("/webhook-secrets")
    first = acme.post("/jobs", json=job(id="mine", webhook=WEBHOOK))
    again = acme.post("/jobs", json=job(id="mine", webhook=WEBHOOK))
    assert first.json()["id"] == again.json()["id"]
    other = {**WEBHOOK, "url": "https://hooks.example/training?token=another"}
    assert acme.post("/jobs", json=job(id="mine", webhook=other)).status_code == 422
