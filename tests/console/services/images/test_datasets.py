"""Saved datasets over HTTP: made, edited, used by jobs, and each tenant's own."""

import io
import zipfile
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import httpx2
import pytest

from console.services.images.upload_store import UploadStore
from tasks.data.stored_datasets import StoredDatasets
from tasks.stages.submit import submit
from tasks.state.artifacts import NO_ARTIFACTS
from tests.console.conftest import Console, image, job, upload, zipped

RED, BLUE, GREEN = (image(color, (64, 64)) for color in ("red", "blue", "green"))


@pytest.fixture(autouse=True)
def nothing_is_left(console: Console, acme: httpx2.Client) -> Iterator[None]:
    # Each change is checked by a process, which takes long on a busy machine.
    acme.timeout = 120
    yield
    for tenant in ("acme", "zoo", "default"):
        datasets = StoredDatasets(console.store, tenant)
        for dataset in datasets.all(deleted=True):
            datasets.remove(dataset.id)


def saved(client: httpx2.Client, *files: tuple[str, bytes], name: str = "cats") -> dict[str, Any]:
    parts = [("file", file) for file in files or (("cat.png", RED), ("cat.txt", b"a cat"))]
    answer = client.post("/datasets:multipart", params={"name": name}, files=parts)
    assert answer.status_code == 201, answer.text
    found: dict[str, Any] = answer.json()
    return found


def contents(client: httpx2.Client, dataset_id: str) -> dict[str, str | None]:
    found = client.get(f"/datasets/{dataset_id}").json()
    return {it["name"]: it["caption"] for it in found["contents"]}


def of_dataset(dataset_id: str, **more: Any) -> dict[str, Any]:
    dataset = {"type": "ARCHIVE", "archive": f"dataset:{dataset_id}"}
    return job(training={"data_loader": {"dataset": dataset}}, **more)


def test_a_dataset_is_made_from_files_and_archives(acme: httpx2.Client) -> None:
    archive = zipped({"sub/cat.png": BLUE, "sub/cat.txt": b"a blue cat", "movie.mp4": b"x"})
    files = [("cat.png", RED), ("cat.txt", b"a cat"), ("a.GIF", b"x"), ("more.zip", archive)]
    made = saved(acme, *files)
    assert (made["name"], made["images"], made["revision"]) == ("cats", 2, 1)
    assert any("a.GIF is a GIF" in note for note in made["notes"])
    assert any("movie.mp4" in note for note in made["notes"])
    assert contents(acme, made["id"]) == {"cat.png": "a cat", "cat-2.png": "a blue cat"}
    found = acme.get(f"/datasets/{made['id']}").json()
    assert found["report"]["images"] == 2
    assert {it["file"] for it in found["report"]["findings"]} == {"cat.png", "cat-2.png"}
    assert [it["id"] for it in acme.get("/datasets").json()] == [made["id"]]


def test_a_dataset_is_made_from_an_upload_that_may_go(acme: httpx2.Client) -> None:
    upload_id = upload(acme, zipped({"cat.png": RED, "cat.txt": b"a cat", "movie.mp4": b"x"}))
    made = acme.post("/datasets", json={"name": "cats", "upload": upload_id}).json()
    assert any("movie.mp4" in note for note in made["notes"])
    assert acme.delete(f"/uploads/{upload_id}").status_code == 204
    assert contents(acme, made["id"]) == {"cat.png": "a cat"}
    kept = acme.delete(f"/uploads/{made['upload']}")
    assert kept.status_code == 409
    assert "has the images of the saved dataset cats" in kept.json()["detail"]


def test_a_dataset_is_edited(acme: httpx2.Client) -> None:
    made = saved(acme)
    address = f"/datasets/{made['id']}"
    added = acme.post(f"{address}/files", files=[("file", ("cat.png", BLUE))]).json()
    assert (added["images"], added["revision"]) == (2, 2)
    changed = acme.patch(address, json={"name": "my cats", "captions": {"cat-2.png": "blue"}})
    assert (changed.json()["name"], changed.json()["revision"]) == ("my cats", 3)
    assert contents(acme, made["id"]) == {"cat.png": "a cat", "cat-2.png": "blue"}
    removed = acme.post(f"{address}/images:remove", json={"images": ["cat.png"]}).json()
    assert removed["images"] == 1
    assert contents(acme, made["id"]) == {"cat-2.png": "blue"}
    unknown = acme.patch(address, json={"captions": {"x.png": "a", "y.png": "b"}})
    assert unknown.status_code == 422
    assert "has no image x.png, y.png" in unknown.json()["detail"]
    assert acme.post(f"{address}/images:remove", json={"images": ["cat-2.png"]}).status_code == 422
    assert contents(acme, made["id"]) == {"cat-2.png": "blue"}


def test_a_dataset_changes_as_a_whole_or_not_at_all(acme: httpx2.Client) -> None:
    made = saved(acme)
    address = f"/datasets/{made['id']}"
    for changes in ({"captions": {"x.png": "a"}}, {"captions": {"cat.png": "b"}, "name": " "}):
        assert acme.patch(address, json={"name": "mine", **changes}).status_code == 422
    found = acme.get(address).json()
    assert (found["name"], found["revision"]) == ("cats", 1)
    both = acme.patch(address, json={"name": "mine", "captions": {"cat.png": "b"}}).json()
    assert (both["name"], both["revision"]) == ("mine", 2)
    # The same captions again make no revision, and take no space.
    uploads = acme.get("/uploads").json()
    same = acme.patch(address, json={"name": "ours", "captions": {"cat.png": "b"}}).json()
    assert (same["name"], same["revision"], same["upload"]) == ("ours", 2, both["upload"])
    assert acme.get("/uploads").json() == uploads


def test_an_edit_that_another_one_overtakes_leaves_nothing(
    console: Console, acme: httpx2.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = saved(acme)
    other, datasets = upload(acme, zipped({"cat.png": BLUE})), StoredDatasets(console.store, "acme")
    before, images = acme.get("/uploads").json(), console.services.datasets._images
    copy = images.copy

    async def copy_slowly(*arguments: Any) -> Any:
        copied = await copy(*arguments)
        stored = datasets.find(made["id"])
        assert stored is not None
        datasets.put(stored.revised(other, 1, 1, None))
        return copied

    monkeypatch.setattr(images, "copy", copy_slowly)
    refused = acme.patch(f"/datasets/{made['id']}", json={"captions": {"cat.png": "b"}})
    assert refused.status_code == 409
    assert "another user has changed the dataset" in refused.json()["detail"]
    assert acme.get("/uploads").json() == before


def test_a_job_keeps_the_images_that_a_dataset_had(console: Console, acme: httpx2.Client) -> None:
    made = saved(acme)
    key = {"Idempotency-Key": "order-1"}
    answer = acme.post("/jobs", json=of_dataset(made["id"]), headers=key)
    assert answer.status_code == 201, answer.text
    job_id = answer.json()["id"]
    [source] = console.state.get(job_id).job.training.loader.sources()
    assert source.archive == f"upload:{made['upload']}"  # type: ignore[attr-defined]
    revised = acme.patch(f"/datasets/{made['id']}", json={"captions": {"cat.png": "new"}}).json()
    # The same request is the same job, also after the dataset has changed or gone.
    again = acme.post("/jobs", json=of_dataset(made["id"]), headers=key)
    assert again.json()["id"] == job_id, again.text
    other = acme.post("/jobs", json=of_dataset(made["id"])).json()["id"]
    [source] = console.state.get(other).job.training.loader.sources()
    assert source.archive == f"upload:{revised['upload']}"  # type: ignore[attr-defined]
    assert acme.delete(f"/datasets/{made['id']}").status_code == 204
    again = acme.post("/jobs", json=of_dataset(made["id"]), headers=key)
    assert again.json()["id"] == job_id, again.text
    assert acme.get(f"/datasets/{made['id']}").status_code == 404
    preview = acme.post("/jobs:preview", json=of_dataset(made["id"]))
    assert preview.status_code == 422
    entries = console.services.client.audit.entries(limit=10, action="dataset.delete")
    assert [(it.subject, it.tenant) for it in entries] == [(made["id"], "acme")]


def test_a_message_names_a_dataset_too(console: Console, acme: httpx2.Client) -> None:
    made = saved(acme)
    document = of_dataset(made["id"], tenant="acme", id="by-message")
    sent = submit(document, console.state, "r", NO_ARTIFACTS, open_store=lambda: console.store)
    [source] = sent.job.training.loader.sources()
    assert source.archive == f"upload:{made['upload']}"  # type: ignore[attr-defined]
    preview = acme.post("/jobs:preview", json=of_dataset(made["id"])).json()
    assert preview["dataset"]["images"] == 1


def test_another_tenants_dataset_is_unknown(
    acme: httpx2.Client, zoo: httpx2.Client, operator: httpx2.Client
) -> None:
    made = saved(acme)
    address = f"/datasets/{made['id']}"
    assert zoo.get("/datasets").json() == []
    assert zoo.get(address).status_code == 404
    assert zoo.patch(address, json={"name": "mine"}).status_code == 404
    assert zoo.delete(address).status_code == 404
    assert zoo.post(f"{address}/files", files=[("file", ("a.png", RED))]).status_code == 404
    refused = zoo.post("/jobs", json=of_dataset(made["id"]))
    assert refused.status_code == 422
    [error] = refused.json()["errors"]
    assert error["location"] == "training.data_loader.dataset.archive"
    assert f"tenant zoo has no saved dataset {made['id']}" in error["message"]
    zoos = upload(zoo, zipped({"cat.png": RED}))
    assert acme.post("/datasets", json={"name": "a", "upload": zoos}).status_code == 404
    assert [it["id"] for it in operator.get("/datasets").json()] == [made["id"]]
    assert operator.patch(address, json={"name": "by the operator"}).status_code == 200
    assert acme.get(address).json()["name"] == "by the operator"


@pytest.mark.parametrize("dataset_id", ["", "../x", "0" * 32, "A" * 32, "%2e%2e"])
def test_malformed_ids_open_nothing(acme: httpx2.Client, dataset_id: str) -> None:
    assert acme.post("/jobs", json=of_dataset(dataset_id)).status_code == 422
    if dataset_id:
        assert acme.get(f"/datasets/{dataset_id}").status_code == 404


def test_what_datasets_use_does_not_expire(console: Console, acme: httpx2.Client) -> None:
    made = saved(acme)
    first = made["upload"]
    loose = upload(acme, zipped({"cat.png": GREEN}))
    revised = acme.patch(f"/datasets/{made['id']}", json={"captions": {"cat.png": "new"}}).json()
    expired = UploadStore(console.settings.home_dir / "x", console.store, console.settings)
    expired._ttl = timedelta(0)
    removed = {view.id for view in expired.remove_expired()}
    assert removed == {loose, first}
    assert contents(acme, made["id"]) == {"cat.png": "new"}
    # Jobs that were submitted with a former revision may still wait for it.
    third = acme.patch(f"/datasets/{made['id']}", json={"captions": {"cat.png": "3"}}).json()
    expired._ttl = timedelta(days=1)
    held = StoredDatasets(console.store, "acme").held_uploads(timedelta(days=1))
    assert {revised["upload"], third["upload"]} <= held


def test_datasets_need_images_and_a_name(acme: httpx2.Client) -> None:
    parts = [("file", ("a.txt", b"x"))]
    answer = acme.post("/datasets:multipart", params={"name": "cats"}, files=parts)
    assert (answer.status_code, answer.json()["detail"]) == (422, "a dataset needs an image")
    parts = [("file", ("a.png", RED))]
    assert acme.post("/datasets:multipart", params={"name": " "}, files=parts).status_code == 422
    assert acme.get("/uploads").json() == []


def test_the_pack_of_a_dataset_is_deterministic(console: Console, acme: httpx2.Client) -> None:
    packs = [console.store.get(f"uploads/acme/{saved(acme)['upload']}") for _ in range(2)]
    assert packs[0] == packs[1]
    with zipfile.ZipFile(io.BytesIO(packs[0])) as archive:
        assert archive.namelist() == ["cat.png", "cat.txt"]
