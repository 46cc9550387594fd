import time
from typing import Any

import httpx2
import pytest
from redis import Redis

from tasks.events import Progress
from tasks.state.keys import FLEET, TENANT_JOBS_PREFIX
from tests.console.conftest import Console, job


def submitted(client: httpx2.Client, document: dict[str, Any], **headers: str) -> dict[str, Any]:
    answer = client.post("/jobs", json=document, headers=headers)
    assert answer.status_code == 201, answer.text
    view: dict[str, Any] = answer.json()
    return view


def test_a_submitted_job_is_shown_in_full(acme: httpx2.Client) -> None:
    view = submitted(acme, job(name="cat", priority=3))
    assert view["tenant"] == "acme"
    assert (view["name"], view["priority"], view["status"]) == ("cat", 3, "queued")
    assert view["queue"] == "gpu.40gb"
    assert view["needed_gib"] == pytest.approx(sum(view["memory_gib"].values()))
    assert "no live worker serves cpu" in view["waiting_reason"]
    assert [stage["name"] for stage in view["stages"]] == ["prepare", "cache", "train", "publish"]
    assert acme.get(f"/jobs/{view['id']}").json() == view


@pytest.mark.parametrize("count", [1000, 8000, 60_000])
def test_a_job_of_many_unknown_options_is_refused_at_once(acme: httpx2.Client, count: int) -> None:
    began_s = time.monotonic()
    answer = acme.post(
        "/jobs", json={"training": {"type": "FLUX_LORA"}, **{str(key): 1 for key in range(count)}}
    )
    assert answer.status_code == 422
    assert len(answer.content) < 10_000
    assert len(answer.json()["errors"]) <= 20
    assert time.monotonic() - began_s < 5


def test_all_problems_of_a_job_are_reported_together(acme: httpx2.Client) -> None:
    wrong = job(tenant="zoo", training={"lora_rank_dim": -1, "max_train_step": 3})
    answer = acme.post("/jobs", json=wrong)
    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert problem["code"] == "invalid_job"
    assert {found["location"] for found in problem["errors"]} == {
        "tenant",
        "training.lora_rank_dim",
        "training.max_train_step",
    }


@pytest.mark.parametrize("body", [b"[]", b"{", b'"x"', b"", b"null", b"[" * 100_000])
def test_bodies_that_are_not_jobs_are_refused(acme: httpx2.Client, body: bytes) -> None:
    headers = {"Content-Type": "application/json"}
    answer = acme.post("/jobs", content=body, headers=headers)
    assert answer.status_code in (400, 422)
    assert answer.headers["content-type"] == "application/problem+json"


def test_a_job_too_large_for_any_gpu_is_refused_with_numbers(acme: httpx2.Client) -> None:
    answer = acme.post("/jobs", json=job(training={"train_batch_size": 1000}))
    assert answer.status_code == 422
    assert answer.json()["code"] == "does_not_fit"
    assert "activations" in answer.json()["detail"]


def test_the_same_idempotency_key_is_the_same_job(acme: httpx2.Client) -> None:
    first = submitted(acme, job(), **{"Idempotency-Key": "k-1"})
    again = submitted(acme, job(), **{"Idempotency-Key": "k-1"})
    other = submitted(acme, job(), **{"Idempotency-Key": "k-2"})
    assert first["id"] == again["id"] != other["id"]
    reused = acme.post("/jobs", json=job(name="dog"), headers={"Idempotency-Key": "k-1"})
    assert reused.status_code == 422
    assert [it["location"] for it in reused.json()["errors"]] == ["Idempotency-Key"]


def test_the_same_id_is_the_same_job(acme: httpx2.Client) -> None:
    first = submitted(acme, job(id="mine"))
    assert submitted(acme, job(id="mine"))["id"] == first["id"]
    assert acme.get("/jobs/mine").json()["id"] == first["id"]
    assert acme.post("/jobs", json=job(id="mine", name="dog")).status_code == 422
    assert acme.post("/jobs", json=job(id="x" * 95)).json()["errors"][0]["location"] == "id"


def test_an_operator_chooses_id_and_tenant(operator: httpx2.Client) -> None:
    view = submitted(operator, job(id="theirs", tenant="zoo"))
    assert (view["id"], view["tenant"]) == ("theirs", "zoo")


def test_jobs_are_listed_newest_first_page_by_page(acme: httpx2.Client) -> None:
    ids = [submitted(acme, job(name=f"n{i}"))["id"] for i in range(7)]
    found, cursor = [], None
    for count in (3, 3, 1):
        page = acme.get("/jobs", params={"limit": 3, **({"cursor": cursor} if cursor else {})})
        assert len(page.json()["jobs"]) == count
        found += [it["id"] for it in page.json()["jobs"]]
        cursor = page.json()["next_cursor"]
    assert found == ids[::-1]
    assert cursor is None
    assert acme.get("/jobs", params={"limit": 7}).json()["next_cursor"] is None


def test_jobs_of_the_same_time_are_listed_once_each(
    acme: httpx2.Client, redis_client: Redis
) -> None:
    ids = {submitted(acme, job())["id"] for _ in range(5)}
    redis_client.zadd(f"{TENANT_JOBS_PREFIX}acme", dict.fromkeys(ids, 1.5))
    found, params = [], {"limit": "2"}
    while True:
        page = acme.get("/jobs", params=params).json()
        found += [it["id"] for it in page["jobs"]]
        if page["next_cursor"] is None:
            break
        params["cursor"] = page["next_cursor"]
    assert sorted(found) == sorted(ids)


def test_jobs_are_found_by_name_and_status(acme: httpx2.Client) -> None:
    cat, dog = submitted(acme, job(name="My-Cat")), submitted(acme, job(name="dog"))
    acme.post(f"/jobs/{dog['id']}:cancel")
    found = acme.get("/jobs", params={"search": "cat"}).json()["jobs"]
    assert [it["id"] for it in found] == [cat["id"]]
    found = acme.get("/jobs", params={"status": "cancelled"}).json()["jobs"]
    assert [it["id"] for it in found] == [dog["id"]]
    assert acme.get("/jobs", params={"status": "odd"}).status_code == 422


@pytest.mark.parametrize("cursor", ["x", "nan~a", "1e400~a", "-1~a", "1~", "1~" + "a" * 101, "~"])
def test_malformed_cursors_are_refused(acme: httpx2.Client, cursor: str) -> None:
    assert acme.get("/jobs", params={"cursor": cursor}).status_code == 400


def test_a_job_is_paused_resumed_and_cancelled(acme: httpx2.Client) -> None:
    job_id = submitted(acme, job())["id"]
    assert acme.post(f"/jobs/{job_id}:pause").json()["status"] == "paused"
    assert acme.post(f"/jobs/{job_id}:resume").json()["status"] == "queued"
    assert acme.post(f"/jobs/{job_id}:cancel").json()["status"] == "cancelled"
    late = acme.post(f"/jobs/{job_id}:pause")
    assert (late.status_code, late.json()["code"]) == (409, "invalid_state")


def test_a_job_shows_the_latest_progress(console: Console) -> None:
    with console.client("acme") as client:
        job_id = submitted(client, job())["id"]
        _, token, *_ = console.state.begin(job_id, "prepare", worker="w", queue="cpu", tag="t")
        for done in (1, 2):
            progress = Progress(stage="prepare", done=done, total=4, unit="files", per_second=2.0)
            console.state.write(job_id, token, [progress])
            assert client.get(f"/jobs/{job_id}").json()["progress"]["done"] == done


def test_jobs_are_found_by_label_and_queue(acme: httpx2.Client, zoo: httpx2.Client) -> None:
    labels, metadata = {"customer": "17"}, {"order": {"number": 5}}
    mine = submitted(acme, job(labels=labels, metadata=metadata))
    assert (mine["labels"], mine["metadata"]) == (labels, metadata)
    submitted(acme, job(labels={"customer": "18"}))
    submitted(zoo, job(labels=labels))

    def found(**query: Any) -> list[str]:
        answer = acme.get("/jobs", params=query)
        assert answer.status_code == 200, answer.text
        return [it["id"] for it in answer.json()["jobs"]]

    assert found(label="customer=17") == [mine["id"]]
    assert len(found(label="customer")) == len(found(queue="gpu.40gb")) == 2
    assert found(label=["customer=17", "team"]) == []
    assert found(created_before="2026-01-01T00:00:00Z") == found(type="SDXL_LORA") == []
    assert acme.get("/jobs", params={"label": "=x"}).status_code == 400
    assert acme.get("/jobs", params={"created_after": "yesterday"}).status_code == 422


def test_a_tenant_orders_its_own_waiting_jobs_only(
    console: Console, acme: httpx2.Client, zoo: httpx2.Client
) -> None:
    console.redis.delete(FLEET)  # no queue has room: every job waits
    first, last = submitted(acme, job()), submitted(acme, job())
    change = f"/jobs/{last['id']}:prioritize"
    answer = acme.post(change, json={"priority": 9})
    assert answer.status_code == 200, answer.text
    assert (answer.json()["priority"], answer.json()["position"]) == (9, 1)
    answer = acme.post(f"/jobs/{first['id']}:prioritize", json={"front": True})
    assert answer.json()["position"] == 1
    assert answer.json()["moved_to_front_at"] is not None
    assert acme.get(f"/jobs/{last['id']}").json()["position"] == 2
    assert zoo.post(change, json={"priority": 1}).status_code == 404
    for wrong in ({}, {"priority": 10}, {"priority": 1, "front": True}, {"front": "x"}):
        assert acme.post(change, json=wrong).status_code == 422
    acme.post(f"/jobs/{last['id']}:cancel")
    answer = acme.post(change, json={"priority": 1})
    assert (answer.status_code, answer.json()["code"]) == (409, "invalid_state")


def test_usage_and_quotas_are_a_tenants_own(
    console: Console, acme: httpx2.Client, zoo: httpx2.Client, operator: httpx2.Client
) -> None:
    console.redis.delete(FLEET)
    submitted(acme, job())
    quotas = console.services.jobs._client.quotas
    quotas.change("acme", {"max_waiting": 1})
    answer = acme.post("/jobs", json=job())
    assert (answer.status_code, answer.json()["code"]) == (429, "quota_exceeded")
    assert answer.json()["retryable"]
    assert int(answer.headers["Retry-After"]) >= 1
    assert zoo.post("/jobs", json=job()).status_code == 201

    [own] = acme.get("/usage").json()["tenants"]
    assert (own["usage"]["tenant"], own["usage"]["submitted"]) == ("acme", 1)
    assert own["quotas"]["max_waiting"] == 1
    assert acme.get("/usage", params={"tenant": "zoo"}).status_code == 403
    everyone = operator.get("/usage").json()["tenants"]
    assert {it["usage"]["tenant"] for it in everyone} == {"acme", "zoo"}
    [one] = operator.get("/usage", params={"tenant": "zoo"}).json()["tenants"]
    assert one["quotas"] is None
    assert operator.get("/usage", params={"month": "2026-13"}).status_code == 422
    assert operator.get("/usage", params={"month": "2025-01"}).json()["tenants"] == []
