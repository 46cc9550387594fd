"""Jobs are renamed and deleted: at once for everyone who looks, and to the last file."""

import threading
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx2
import pytest
from redis import ConnectionError as BrokerLostError
from redis import Redis

from tasks import deletion
from tasks.contract import record_key
from tasks.deletion import DeletedFiles
from tasks.errors import JobError, StoreError
from tasks.state import scripts
from tasks.state.keys import DELETIONS, UNSTORED_RESULTS
from tasks.state.tenants.usage import UsageStore
from tasks.store import Store, archived_record_key
from tests.console.conftest import Console, job

PACK = "cache/latents/ab/abc.safetensors"


@pytest.fixture
def published(console: Console, acme: httpx2.Client) -> str:
    job_id: str = acme.post("/jobs", json=job(name="cat", id="cat-1")).json()["id"]
    console.publish(job_id, {"cat.safetensors": b"weights", "validation/a b.png": b"image"})
    console.keep(f"jobs/{job_id}/checkpoints/1/state", "state", b"a checkpoint")
    console.keep(archived_record_key(job_id), "record", b"{}")
    console.keep(PACK, "pack", b"shared")
    return job_id


@pytest.fixture
def neighbor(console: Console, published: str) -> str:
    """A job whose id begins with that of the published one."""
    job_id = f"{published}0"
    for key in (f"outputs/{job_id}/x", f"jobs/{job_id}/x", archived_record_key(job_id)):
        console.keep(key, "x", b"of another job")
    return job_id


def stored(console: Console, job_id: str) -> list[str]:
    folders = ("outputs", "jobs", "records")
    found = [key for folder in folders for key in console.store.keys(folder)]
    return [key for key in found if job_id in key.replace(".json", "").split("/")]


def keys_of(client: Redis, job_id: str) -> set[str]:
    return {str(key) for key in client.keys(f"*{job_id}*")} - {record_key(job_id)}


def test_a_deleted_job_leaves_only_what_is_shared(
    console: Console, acme: httpx2.Client, published: str, neighbor: str
) -> None:
    size = acme.get(f"/jobs/{published}/storage").json()
    assert size["published_bytes"] > len(b"weightsimage")
    assert size["working_bytes"] > len(b"a checkpoint")
    used = UsageStore(console.redis)
    before = used.of("acme", used.this_month())
    assert acme.delete(f"/jobs/{published}").status_code == 204
    for path in ("", "/files", "/samples", "/storage", "/events"):
        assert acme.get(f"/jobs/{published}{path}").status_code == 404
    assert acme.get("/jobs").json()["jobs"] == []
    assert stored(console, published) == []
    assert keys_of(console.redis, published) == set()
    assert console.store.exists(PACK)
    assert len(stored(console, neighbor)) == 3
    assert used.of("acme", used.this_month()) == before
    entry = console.services.client.audit.entries(action="job.delete", subject=published)[0]
    assert (entry.actor, entry.tenant, entry.details) == ("key acme", "acme", {"name": "cat"})
    # Again, and by the id that the tenant knows: nothing else happens.
    assert acme.delete("/jobs/cat-1").status_code == 204


def test_results_of_another_job_inside_the_folder_stay(
    console: Console, acme: httpx2.Client, published: str
) -> None:
    inside = f"outputs/{published}/other"
    for name in ("cat.safetensors", "validation/a.png", "manifest.json"):
        console.keep(f"{inside}/{name}", name, b"of another job")
    before = acme.get(f"/jobs/{published}/storage").json()["published_bytes"]
    console.keep(f"{inside}/large", "large", b"x" * 1000)
    assert acme.get(f"/jobs/{published}/storage").json()["published_bytes"] == before
    assert acme.delete(f"/jobs/{published}").status_code == 204
    left = stored(console, published)
    assert [key.removeprefix(f"{inside}/") for key in left] == [
        "cat.safetensors",
        "large",
        "manifest.json",
        "validation/a.png",
    ]
    console.store.delete(left)


def test_others_jobs_and_unknown_ones_are_not_deleted(
    console: Console, acme: httpx2.Client, zoo: httpx2.Client, published: str
) -> None:
    assert zoo.delete(f"/jobs/{published}").status_code == 404
    assert acme.get(f"/jobs/{published}").status_code == 200
    acme.delete(f"/jobs/{published}")
    assert zoo.delete(f"/jobs/{published}").status_code == 404
    assert zoo.delete("/jobs/nothing").status_code == 404
    assert zoo.delete("/jobs/..%2F..").status_code == 404


def test_a_job_that_has_not_ended_is_not_deleted(acme: httpx2.Client) -> None:
    job_id = acme.post("/jobs", json=job()).json()["id"]
    answer = acme.delete(f"/jobs/{job_id}")
    assert answer.status_code == 409
    assert "queued; cancel it before you delete it" in answer.json()["detail"]
    acme.post(f"/jobs/{job_id}:cancel")
    assert acme.delete(f"/jobs/{job_id}").status_code == 204


def test_a_job_that_is_copied_is_not_deleted(
    console: Console, acme: httpx2.Client, published: str
) -> None:
    with console.services.client.ended_jobs.holding_results(published) as hold:
        hold()
        answer = acme.delete(f"/jobs/{published}")
        assert answer.status_code == 409
        assert "being copied" in answer.json()["detail"]
    assert acme.delete(f"/jobs/{published}").status_code == 204
    with (
        pytest.raises(JobError, match="was deleted"),
        console.services.client.ended_jobs.holding_results(published),
    ):
        pass


def test_a_job_replayed_meanwhile_is_not_deleted(
    console: Console, acme: httpx2.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, job_id = console.services.client, acme.post("/jobs", json=job()).json()["id"]
    token = console.state.begin(job_id, "prepare", worker="w", queue="q", tag="t").token
    console.state.fail(job_id, token, JobError("broken"))
    delete = client.deletions.delete

    def replayed_first(record: Any, remains: Any) -> bool:
        client.replay(record.id, "key acme")
        return delete(record, remains)

    monkeypatch.setattr(client.deletions, "delete", replayed_first)
    assert acme.delete(f"/jobs/{job_id}").status_code == 409
    assert acme.get(f"/jobs/{job_id}").json()["status"] == "running"


def test_no_job_gets_the_id_of_a_deleted_one(
    console: Console, acme: httpx2.Client, published: str
) -> None:
    acme.delete(f"/jobs/{published}")
    answer = acme.post("/jobs", json=job(name="cat", id="cat-1"))
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["location"] == "id"
    assert "deleted" in answer.json()["errors"][0]["message"]
    # Neither does a message of it that is delivered again run it.
    with pytest.raises(JobError, match="no job"):
        console.state.begin(published, "publish", worker="w", queue="q", tag="t")
    with pytest.raises(JobError):
        console.services.client.replay(published, "key acme")


def test_who_waits_for_a_deleted_job_gets_its_result(
    console: Console, acme: httpx2.Client, published: str
) -> None:
    result_id = console.state.summary(published).result_id
    assert console.redis.zscore(UNSTORED_RESULTS, published) is not None
    acme.delete(f"/jobs/{published}")
    meta = console.services.client._app.backend.get_task_meta(result_id)
    assert meta["result"]["job_id"] == published


def test_pending_deliveries_go_with_the_job(console: Console, acme: httpx2.Client) -> None:
    console.services.client.create_webhook_secret("acme", "key acme")
    webhook = {"url": "https://hooks.example/", "events": ["accepted", "cancelled"]}
    job_id = acme.post("/jobs", json=job(webhook=webhook)).json()["id"]
    acme.post(f"/jobs/{job_id}:cancel")
    assert console.redis.zcard("training:webhooks:tenant:acme") == 2
    assert acme.delete(f"/jobs/{job_id}").status_code == 204
    assert console.redis.zcard("training:webhooks:tenant:acme") == 0
    assert console.redis.zscore("training:webhooks:tenants", "acme") is None


def files_of(console: Console, store: Store) -> DeletedFiles:
    return DeletedFiles(store, console.redis, console.services.client.deletions)


@pytest.mark.parametrize("failing", range(5))
def test_a_deletion_that_the_store_interrupts_is_finished(
    console: Console,
    acme: httpx2.Client,
    published: str,
    failing: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls = iter(range(100))

    def failing_once(call: Callable[..., Any]) -> Callable[..., Any]:
        def made(*args: Any) -> Any:
            if next(calls) == failing:
                raise StoreError("the store is unavailable")
            return call(*args)

        return made

    for name in ("delete", "sizes"):
        monkeypatch.setattr(Store, name, failing_once(getattr(Store, name)))
    assert acme.delete(f"/jobs/{published}").status_code == 202
    monkeypatch.undo()
    assert acme.get(f"/jobs/{published}").status_code == 404
    assert acme.get("/jobs").json()["jobs"] == []
    assert stored(console, published)
    # The record and the manifest go first: no recovery takes the rest for a whole job.
    if failing:
        assert archived_record_key(published) not in stored(console, published)
    if failing % 2:
        assert acme.delete("/jobs/cat-1").status_code == 204
    else:
        monkeypatch.setattr(deletion, "_RETRY_S", -1.0)
        console.services.client.deletions.postpone(published, -1.0)
        assert files_of(console, console.store).remove_due() == [published]
    assert stored(console, published) == []


def test_a_broker_lost_before_the_deletion_leaves_the_job_whole(
    console: Console, acme: httpx2.Client, published: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, files = acme.get(f"/jobs/{published}").json(), stored(console, published)

    def lost(*args: Any, **kwargs: Any) -> str:
        raise BrokerLostError("lost")

    monkeypatch.setattr(scripts, "delete_job", lost)
    assert acme.delete(f"/jobs/{published}").status_code == 503
    monkeypatch.undo()
    assert acme.get(f"/jobs/{published}").json() == before
    assert stored(console, published) == files
    assert acme.delete(f"/jobs/{published}").status_code == 204


def test_a_reply_lost_after_the_deletion_is_made_up_for(
    console: Console, acme: httpx2.Client, published: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    delete_job = scripts.delete_job

    def lost(*args: Any, **kwargs: Any) -> str:
        delete_job(*args, **kwargs)
        raise BrokerLostError("lost")

    monkeypatch.setattr(scripts, "delete_job", lost)
    assert acme.delete(f"/jobs/{published}").status_code == 503
    monkeypatch.undo()
    assert acme.get(f"/jobs/{published}").status_code == 404
    assert files_of(console, console.store).remove_due() == [published]
    assert stored(console, published) == []


def test_what_is_written_after_the_deletion_is_removed_later(
    console: Console, acme: httpx2.Client, published: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    acme.delete(f"/jobs/{published}")
    console.keep(f"jobs/{published}/checkpoints/2/state", "state", b"by a superseded start")
    deletions = console.services.client.deletions
    assert files_of(console, console.store).remove_due() == []
    assert deletions.find(published).remains  # type: ignore[union-attr]  # it was deleted
    monkeypatch.setattr(deletion, "_SECOND_LOOK", timedelta(0))
    deletions.postpone(published, -1.0)
    assert files_of(console, console.store).remove_due() == [published]
    assert stored(console, published) == []
    assert console.redis.zcard(DELETIONS) == 0
    assert deletions.find(published).remains == ()  # type: ignore[union-attr]
    assert 0 < console.redis.ttl(record_key(published)) <= console.settings.job_ttl.total_seconds()


def test_deletions_at_once_are_one(console: Console, acme: httpx2.Client, published: str) -> None:
    answers: list[int] = []

    def delete() -> None:
        with console.client("acme") as client:
            answers.append(client.delete(f"/jobs/{published}").status_code)

    threads = [threading.Thread(target=delete) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [204] * 4
    assert stored(console, published) == []


def test_a_job_is_renamed_and_found_by_its_title(
    console: Console, acme: httpx2.Client, zoo: httpx2.Client, published: str
) -> None:
    edit = {"title": "  The <b>red</b> cat 🐈 ", "notes": "two\nlines", "labels": {"shelf": "3"}}
    edited = acme.patch("/jobs/cat-1", json=edit)
    assert edited.status_code == 200, edited.text
    view = acme.get(f"/jobs/{published}").json()
    assert view == edited.json()
    assert (view["title"], view["notes"]) == ("The <b>red</b> cat 🐈", "two\nlines")
    assert (view["name"], view["labels"]) == ("cat", {"shelf": "3"})
    assert acme.get(f"/jobs/{published}/files").json()["files"][0]["name"] == "cat.safetensors"
    for search in ({"search": "RED"}, {"search": "lines"}, {"label": "shelf=3"}):
        assert [it["id"] for it in acme.get("/jobs", params=search).json()["jobs"]] == [published]
    # A recovery brings the title back.
    assert "red" in console.store.get(archived_record_key(published)).decode()
    assert zoo.patch(f"/jobs/{published}", json=edit).status_code == 404
    partly = acme.patch(f"/jobs/{published}", json={"title": None}).json()
    assert partly == {**view, "title": None}
    cleared = acme.patch(f"/jobs/{published}", json={"notes": "", "labels": {}}).json()
    assert (cleared["notes"], cleared["labels"]) == (None, {})


def test_the_end_of_a_job_is_not_moved_by_its_title(acme: httpx2.Client, published: str) -> None:
    before = acme.get(f"/jobs/{published}").json()
    after = acme.patch(f"/jobs/{published}", json={"title": "Red"}).json()
    assert after == {**before, "title": "Red"}


@pytest.mark.parametrize(
    ("edit", "location"),
    [
        ({"title": "x" * 101}, "title"),
        ({"title": "two\nlines"}, "title"),
        ({"title": "\u202egnp.exe"}, "title"),
        ({"title": 7}, "title"),
        ({"notes": "\x1b[2J"}, "notes"),
        ({"notes": "x" * 4001}, "notes"),
        ({"labels": {"": "x"}}, "labels"),
        ({"labels": {f"l{n}": "" for n in range(33)}}, "labels"),
        ({"name": "dog"}, "name"),
        ({}, ""),
    ],
)
def test_what_cannot_be_a_title_is_refused(
    acme: httpx2.Client, published: str, edit: dict[str, Any], location: str
) -> None:
    answer = acme.patch(f"/jobs/{published}", json=edit)
    assert answer.status_code == 422
    assert [location in it["location"] for it in answer.json()["errors"]] == [True]
    assert acme.get(f"/jobs/{published}").json()["title"] is None


def test_a_deleted_jobs_folders_are_no_others(tmp_path: Path) -> None:
    store = Store(tmp_path.as_uri())
    for key in ("jobs/a/x", "jobs/ab/x", "jobs/a.b/x"):
        store.put(key, b"x")
    assert store.keys("jobs/a/") == ["jobs/a/x"]
