import io
import json
import zipfile
from typing import Any

import httpx2
import pytest

from console.services.images.captioning import Captioning
from tasks.captions.requests import MAX_IMAGES
from tasks.captions.runs import MAX_ACTIVE
from tasks.settings.settings import Settings
from tests.console.conftest import PNG, Console


@pytest.fixture
def captioning(console: Console, monkeypatch: pytest.MonkeyPatch) -> Captioning:
    """The service of a console with a model; no worker takes what it sends."""
    settings = Settings(
        caption_model="org/model",
        caption_revision="v1",
        caption_class="24gb",
        caption_max_tokens=32,
    )
    monkeypatch.setattr(console.services.captioning, "_settings", settings)
    return console.services.captioning


def uploaded(client: httpx2.Client) -> str:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        archive.writestr("cat.png", PNG)
    answer = client.post("/uploads:multipart", files={"file": ("images.zip", data.getvalue())})
    upload_id: str = answer.raise_for_status().json()["id"]
    return upload_id


def started(client: httpx2.Client, upload: str, **fields: Any) -> httpx2.Response:
    return client.post("/captions", json={"upload": upload, **fields})


def test_nothing_is_offered_without_a_model(console: Console, acme: httpx2.Client) -> None:
    assert not console.services.captioning.is_available
    answer = started(acme, uploaded(acme))
    assert answer.status_code == 409
    assert "TRAINING_CAPTION_MODEL" in answer.json()["detail"]


def test_run_is_sent_to_the_queue_of_its_class_once(
    console: Console, captioning: Captioning, acme: httpx2.Client
) -> None:
    assert captioning.is_available
    upload = uploaded(acme)
    answer = started(acme, upload, files=["cat.png"], style="short")
    assert answer.status_code == 202
    run = answer.json()
    assert (run["state"], run["upload"], run["done"], run["captions"]) == ("waiting", upload, 0, {})
    assert "gpu.24gb" in run["waiting_reason"]
    assert started(acme, upload, files=["cat.png"], style="short").json()["id"] == run["id"]
    [text] = console.redis.lrange("gpu.24gb", 0, -1)
    headers = json.loads(text)["headers"]
    assert (headers["task"], headers["id"]) == ("training.caption", run["id"])
    assert headers["argsrepr"] == f"captions={run['id']} tenant=acme"
    stored = console.services.client.captions.get(run["id"])
    assert stored is not None
    assert stored.request.model.model_dump() == {
        "model": "org/model",
        "revision": "v1",
        "max_tokens": 32,
    }
    assert acme.get(f"/captions/{run['id']}").json() == run


def test_other_tenants_see_no_run_and_no_upload(
    console: Console,
    captioning: Captioning,
    acme: httpx2.Client,
    zoo: httpx2.Client,
    operator: httpx2.Client,
) -> None:
    upload = uploaded(acme)
    assert started(zoo, upload).status_code == 404
    path = f"/captions/{started(acme, upload).json()['id']}"
    assert (zoo.get(path).status_code, zoo.delete(path).status_code) == (404, 404)
    assert operator.get(path).status_code == 200
    assert acme.delete(path).status_code == 204
    assert acme.get(path).status_code == 404
    assert acme.get("/captions/..%2fother").status_code == 404


@pytest.mark.parametrize(
    "fields",
    [
        {"files": []},
        {"files": ["a.png"] * (MAX_IMAGES + 1)},
        {"files": [""]},
        {"style": "rude"},
        {"unknown": 1},
    ],
)
def test_wrong_requests_are_refused(
    captioning: Captioning, acme: httpx2.Client, fields: dict[str, Any]
) -> None:
    assert started(acme, uploaded(acme), **fields).status_code == 422


def test_a_tenant_has_a_few_runs(captioning: Captioning, acme: httpx2.Client) -> None:
    uploads = [uploaded(acme) for _ in range(MAX_ACTIVE + 1)]
    answers = [started(acme, upload).status_code for upload in uploads]
    assert answers == [202] * MAX_ACTIVE + [429]
