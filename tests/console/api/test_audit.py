import httpx2

from tests.console.conftest import job


def test_operators_read_who_did_what(operator: httpx2.Client, acme: httpx2.Client) -> None:
    job_id = acme.post("/jobs", json=job()).json()["id"]
    acme.post(f"/jobs/{job_id}:pause")
    operator.post(f"/jobs/{job_id}:cancel", params={"save": True})
    page = operator.get("/audit", params={"job": job_id}).json()
    cancelled, paused = page["entries"]
    assert page["next_before"] is None
    assert (paused["actor"], paused["action"]) == ("key acme", "job.pause")
    assert paused["tenant"] == "acme"
    assert (cancelled["actor"], cancelled["details"]) == ("key operator", {"save": True})
    first = operator.get("/audit", params={"limit": 1}).json()
    assert first["entries"] == [cancelled]
    second = operator.get("/audit", params={"limit": 1, "before": first["next_before"]}).json()
    assert (second["entries"], second["next_before"]) == ([paused], None)
    for filters in ({"action": "job.pause"}, {"actor": "key acme"}):
        assert operator.get("/audit", params=filters).json()["entries"] == [paused]
    assert operator.get("/audit", params={"tenant": "zoo"}).json()["entries"] == []


def test_tenants_do_not_read_the_audit_log(acme: httpx2.Client) -> None:
    assert acme.get("/audit").status_code == 403
