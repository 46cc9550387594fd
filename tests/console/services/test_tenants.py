"""Attempts to reach another tenant's data by every route."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import httpx2
import pytest

from console.services.jobs.jobs import tenant_job_id
from routing.classes import MemoryClass
from tasks.state.connection import connect
from tasks.state.workers import WorkerHeartbeat, WorkerInfo
from tests.console.conftest import PNG, Console, job, send, upload, zipped

Ask = Callable[[httpx2.Client, str], httpx2.Response]
TUS = {"Tus-Resumable": "1.0.0"}

OF_JOBS: dict[str, Ask] = {
    "look": lambda client, job_id: client.get(f"/jobs/{job_id}"),
    "cancel": lambda client, job_id: client.post(f"/jobs/{job_id}:cancel"),
    "pause": lambda client, job_id: client.post(f"/jobs/{job_id}:pause"),
    "resume": lambda client, job_id: client.post(f"/jobs/{job_id}:resume"),
    "events": lambda client, job_id: client.get(f"/jobs/{job_id}/events"),
    "later events": lambda client, job_id: client.get(
        f"/jobs/{job_id}/events", headers={"Last-Event-ID": "1-0"}
    ),
    "files": lambda client, job_id: client.get(f"/jobs/{job_id}/files"),
    "file": lambda client, job_id: client.get(f"/jobs/{job_id}/files/cat.safetensors"),
    "samples": lambda client, job_id: client.get(f"/jobs/{job_id}/samples"),
    "sample": lambda client, job_id: client.get(
        f"/jobs/{job_id}/samples/validation-000004-1-1.png"
    ),
}
OF_UPLOADS: dict[str, Ask] = {
    "look": lambda client, upload_id: client.get(f"/uploads/{upload_id}"),
    "write": lambda client, upload_id: send(client, upload_id, 0, b"x"),
    "delete": lambda client, upload_id: client.delete(f"/uploads/{upload_id}", headers=TUS),
    "images": lambda client, upload_id: client.get(f"/uploads/{upload_id}/images"),
    "thumbnail": lambda client, upload_id: client.get(f"/uploads/{upload_id}/images/0"),
}


@pytest.fixture
def zoo_job(console: Console, zoo: httpx2.Client) -> str:
    """Return the id of a finished job of the tenant zoo."""
    job_id: str = zoo.post("/jobs", json=job(name="secret-name")).json()["id"]
    console.publish(job_id, {"cat.safetensors": b"weights"})
    return job_id


def same(answer: httpx2.Response, other: httpx2.Response, ids: tuple[str, str]) -> bool:
    """Return whether two responses differ only in the requested ids."""
    one, two = answer.text.replace(ids[0], "ID"), other.text.replace(ids[1], "ID")
    return (answer.status_code, one) == (other.status_code, two)


@pytest.mark.parametrize("ask", OF_JOBS.values(), ids=OF_JOBS)
def test_another_tenants_job_is_answered_like_an_unknown_one(
    acme: httpx2.Client, zoo: httpx2.Client, zoo_job: str, ask: Ask
) -> None:
    missing = "0" * len(zoo_job)
    answer = ask(acme, zoo_job)
    assert answer.status_code == 404
    assert same(answer, ask(acme, missing), (zoo_job, missing))
    assert zoo.get(f"/jobs/{zoo_job}").json()["status"] == "succeeded"


def test_another_tenants_upload_is_answered_like_an_unknown(
    acme: httpx2.Client, zoo: httpx2.Client
) -> None:
    upload_id, missing = upload(zoo, zipped({"a.png": PNG})), "0" * 32
    assert len(zoo.get(f"/uploads/{upload_id}/images").json()) == 1
    for name, ask in OF_UPLOADS.items():
        answer = ask(acme, upload_id)
        assert answer.status_code == 404, name
        assert same(answer, ask(acme, missing), (upload_id, missing)), name
    assert acme.head(f"/uploads/{upload_id}").status_code == 404
    assert zoo.get(f"/uploads/{upload_id}/images/0").status_code == 200
    assert acme.get("/uploads").json() == []
    zoo.delete(f"/uploads/{upload_id}")


@pytest.mark.parametrize("key", ["{}:events", "training:job:{}", "*", "{}?x", " {}"])
def test_an_id_never_becomes_part_of_another_key(
    acme: httpx2.Client, zoo_job: str, key: str
) -> None:
    assert acme.get(f"/jobs/{key.format(zoo_job)}").status_code == 404


def test_another_tenants_upload_is_no_dataset(acme: httpx2.Client, zoo: httpx2.Client) -> None:
    upload_id = upload(zoo, zipped({"a.png": PNG, "a.txt": b"a"}))

    def checked(client: httpx2.Client, upload_id: str) -> dict[str, Any]:
        dataset = {"type": "ARCHIVE", "archive": f"upload:{upload_id}"}
        document = job(training={"data_loader": {"dataset": dataset}})
        found: dict[str, Any] = client.post("/jobs:preview", json=document).json()["dataset"]
        return found

    assert checked(zoo, upload_id)["images"] == 1
    reports = [str(checked(acme, it)).replace(it, "ID") for it in (upload_id, "0" * 32)]
    assert reports[0] == reports[1]
    zoo.delete(f"/uploads/{upload_id}")


def test_lists_and_searches_show_own_jobs_only(
    acme: httpx2.Client, zoo: httpx2.Client, operator: httpx2.Client, zoo_job: str
) -> None:
    mine = acme.post("/jobs", json=job(name="mine")).json()["id"]
    for params in ({}, {"search": "secret"}, {"search": zoo_job}, {"status": "succeeded"}):
        found = acme.get("/jobs", params=params).json()
        assert [it["id"] for it in found["jobs"]] in ([], [mine])
    refused = acme.get("/jobs", params={"tenant": "zoo"})
    assert refused.status_code == 403
    assert same(refused, acme.get("/jobs", params={"tenant": "nobody"}), ("zoo", "nobody"))
    cursor = operator.get("/jobs", params={"limit": 1}).json()["next_cursor"]
    assert acme.get("/jobs", params={"cursor": cursor}).json()["jobs"] == []
    assert {it["id"] for it in operator.get("/jobs").json()["jobs"]} == {mine, zoo_job}
    shown = operator.get("/jobs", params={"tenant": "zoo"}).json()["jobs"]
    assert [it["id"] for it in shown] == [zoo_job]


def test_two_tenants_may_use_the_same_job_id(acme: httpx2.Client, zoo: httpx2.Client) -> None:
    ids = [it.post("/jobs", json=job(id="best")).json()["id"] for it in (acme, zoo)]
    assert ids[0] != ids[1]
    for client, tenant in ((acme, "acme"), (zoo, "zoo")):
        assert client.get("/jobs/best").json()["tenant"] == tenant


def test_ids_of_other_tenants_are_not_revealed(
    console: Console, acme: httpx2.Client, zoo: httpx2.Client, operator: httpx2.Client
) -> None:
    operator.post("/jobs", json=job(id="raw", tenant="zoo"))
    namespaced = zoo.post("/jobs", json=job(id="best")).json()["id"]
    answers = [acme.post("/jobs", json=job(id=it)) for it in ("raw", namespaced, "best", "nobodys")]
    assert [it.status_code for it in answers] == [201] * 4
    assert [it.json()["tenant"] for it in answers] == ["acme"] * 4
    assert zoo.get("/jobs/raw").json()["tenant"] == "zoo"


def test_one_idempotency_key_of_two_tenants_is_two_jobs(
    acme: httpx2.Client, zoo: httpx2.Client, operator: httpx2.Client
) -> None:
    headers = {"Idempotency-Key": "same"}
    made = [it.post("/jobs", json=job(), headers=headers) for it in (acme, zoo, operator)]
    assert [it.status_code for it in made] == [201] * 3
    assert len({it.json()["id"] for it in made}) == 3


def test_ids_of_two_tenants_never_collide() -> None:
    assert tenant_job_id("a", "b-c") != tenant_job_id("a-b", "c")
    assert tenant_job_id("a", "b") != tenant_job_id("b", "a")


def test_a_key_submits_as_its_tenant_only(acme: httpx2.Client, operator: httpx2.Client) -> None:
    for tenant in ("zoo", "", None, ["acme"]):
        answer = acme.post("/jobs", json=job(tenant=tenant))
        assert answer.status_code == 422
        assert answer.json()["errors"][0]["location"] == "tenant"
    assert acme.post("/jobs", json=job(tenant="acme")).status_code == 201
    about = {"Upload-Metadata": "tenant em9v", **TUS, "Upload-Length": "1"}
    assert acme.post("/uploads", headers=about).status_code == 403
    created = operator.post("/uploads", headers=about)
    upload_id = created.headers["location"].rpartition("/")[2]
    assert operator.get(f"/uploads/{upload_id}").json()["tenant"] == "zoo"
    assert operator.delete(f"/uploads/{upload_id}").status_code == 204


def test_the_fleet_hides_jobs_of_other_tenants(
    console: Console, acme: httpx2.Client, zoo: httpx2.Client, operator: httpx2.Client
) -> None:
    job_id = zoo.post("/jobs", json=job(name="secret-name")).json()["id"]
    note_worker(console, "gpu-1")
    console.state.begin(job_id, "prepare", worker="gpu-1", queue="cpu", tag="t")
    response = acme.get("/fleet")
    for secret in ("secret-name", job_id, "zoo", "XID 79"):
        assert secret not in response.text
    [worker] = response.json()["workers"]
    assert (worker["activity"], worker["job_id"], worker["busy"]) == (
        "another tenant's job",
        None,
        True,
    )
    [worker] = zoo.get("/fleet").json()["workers"]
    assert (worker["activity"], worker["job_id"]) == ("secret-name: prepare", job_id)
    [worker] = operator.get("/fleet").json()["workers"]
    assert worker["quarantine_reason"] == "had an XID 79"


def test_a_tenant_sees_the_number_of_waiting_jobs_only(
    console: Console, acme: httpx2.Client, zoo: httpx2.Client, operator: httpx2.Client
) -> None:
    zoo.post("/jobs", json=job())
    acme.post("/jobs", json=job())

    def cpu(client: httpx2.Client) -> dict[str, Any]:
        found: dict[str, Any] = client.get("/fleet").json()["queues"][0]
        return found

    assert {k: cpu(acme)[k] for k in ("waiting", "own_waiting", "waiting_by_tenant")} == {
        "waiting": 2,
        "own_waiting": 1,
        "waiting_by_tenant": None,
    }
    assert cpu(operator)["waiting_by_tenant"] == {"acme": 1, "zoo": 1}


def test_only_operators_see_reasons_of_quarantines(
    console: Console, acme: httpx2.Client, operator: httpx2.Client
) -> None:
    note_worker(console, "gpu-1")
    job_id = acme.post("/jobs", json=job()).json()["id"]
    shown = (
        acme.get(f"/jobs/{job_id}").text
        + acme.post("/jobs:preview?check_dataset=false", json=job()).text
    )
    assert "no live worker serves" in shown
    assert "XID" not in shown
    assert "XID" in operator.get(f"/jobs/{job_id}").json()["waiting_reason"]


def test_queues_of_an_engine_need_a_worker_to_be_shown(
    console: Console, operator: httpx2.Client
) -> None:
    def engines_queues() -> dict[str, int]:
        queues = operator.get("/fleet").json()["queues"]
        return {it["name"]: it["waiting"] for it in queues if "invoke" in it["name"]}

    assert engines_queues() == {}
    note_worker(console, "gpu-1", ("gpu.24gb.invoke-training",), quarantined=None)
    assert engines_queues() == {"gpu.24gb.invoke-training": 0}


def note_worker(
    console: Console,
    name: str,
    queues: tuple[str, ...] = ("cpu", "gpu.40gb"),
    quarantined: str | None = "had an XID 79",
) -> None:
    assert console.settings.broker_url is not None
    presence = WorkerInfo(queues=queues, memory_class=MemoryClass.GB40, quarantined=quarantined)
    client = connect(console.settings.broker_url.get_secret_value())
    WorkerHeartbeat(client, name, presence, timedelta(minutes=1)).renew()
    client.close()
