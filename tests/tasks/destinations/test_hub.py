"""Copies to the Hub, by its own library and a server that speaks its protocol."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tasks.destinations.hub import HubCopier
from tasks.destinations.results import CopyError, Results
from tasks.errors import SupersededError
from tasks.jobs.destinations import HubDestination
from tests.tasks.destinations.hub_server import TOKEN, HubServer, Repo, running_hub_server
from tests.tasks.destinations.made import FILES, job_of, results_of

REPO = "me/my-lamp"
# The library's own call, where it uploads without Xet.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>':DeprecationWarning")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    monkeypatch.setenv("HF_TOKEN", "hf_ofTheOperator")
    with running_hub_server(monkeypatch) as server:
        yield server


@pytest.fixture
def results(tmp_path: Path, job_document: dict[str, Any]) -> Results:
    return results_of(job_of(job_document), tmp_path)


def copier(hub: HubServer, token: str = TOKEN, **options: Any) -> HubCopier:
    options = {"hub_model_id": REPO, "hub_token": "mine", **options}
    return HubCopier(HubDestination(**options), token, endpoint=hub.url)


def test_a_new_repository_is_private_and_has_the_results(hub: HubServer, results: Results) -> None:
    copier(hub).check()
    assert hub.repos == {}
    copy = copier(hub).copy(results, lambda: None)
    repo = hub.repos[REPO]
    assert repo.private
    assert set(repo.files) == {
        ".gitattributes",
        "README.md",
        "lamp.json",
        "lamp.safetensors",
        "samples/validation-000020-1-1.png",
        "samples/validation-000020-2-1.png",
        "training.json",
    }
    assert repo.files["lamp.safetensors"] == FILES["lamp.safetensors"]
    header = yaml.safe_load(repo.files["README.md"].split(b"---\n")[1])
    assert header["base_model"] == "black-forest-labs/FLUX.1-dev"
    assert header["base_model_relation"] == "adapter"
    assert header["license_name"] == "flux-1-dev-non-commercial-license"
    assert {"diffusers", "lora", "text-to-image", "template:sd-lora"} <= set(header["tags"])
    assert header["widget"][1] == {
        "text": "two lamps",
        "output": {"url": "samples/validation-000020-2-1.png"},
    }
    assert (copy.url, copy.commit) == (f"{hub.url}/{REPO}", repo.head)
    # The operator's own token and places of the fleet are nowhere.
    assert hub.tokens == {TOKEN}
    assert "dataset_dir" not in json.loads(repo.files["training.json"])["training"]["data_loader"]


def test_the_same_results_are_committed_once(hub: HubServer, results: Results) -> None:
    first = copier(hub).copy(results, lambda: None)
    again = copier(hub).copy(results, lambda: None)
    assert again == first
    assert len(hub.repos[REPO].commits) == 2


def test_other_files_of_a_repository_stay(hub: HubServer, results: Results) -> None:
    hub.repos[REPO] = Repo(private=True, files={"notes.md": b"mine"})
    copier(hub).copy(results, lambda: None)
    assert hub.repos[REPO].files["notes.md"] == b"mine"


def test_a_superseded_start_commits_nothing(hub: HubServer, results: Results) -> None:
    hub.repos[REPO] = Repo(private=True)

    def fence() -> None:
        raise SupersededError("j1", 1)

    with pytest.raises(SupersededError):
        copier(hub).copy(results, fence)
    assert len(hub.repos[REPO].commits) == 1


def test_a_commit_that_came_between_is_not_overwritten(hub: HubServer, results: Results) -> None:
    hub.repos[REPO] = Repo(private=True)
    hub.before_commit = lambda: hub.repos[REPO].commits.append("by another")
    with pytest.raises(CopyError) as caught:
        copier(hub).copy(results, lambda: None)
    assert caught.value.retryable
    hub.before_commit = lambda: None
    copier(hub).copy(results, lambda: None)
    assert hub.repos[REPO].commits == ["first", "by another", "Upload lamp"]


def test_a_copy_whose_answer_was_lost_is_found(hub: HubServer, results: Results) -> None:
    copier(hub).copy(results, lambda: None)
    hub.asked.clear()
    assert copier(hub).copy(results, lambda: None).commit == hub.repos[REPO].head
    assert not any("/commit/" in path or path.startswith("PUT") for path in hub.asked)


@pytest.mark.parametrize("status", [429, 500, 503])
def test_an_unavailable_hub_is_asked_later(hub: HubServer, results: Results, status: int) -> None:
    hub.repos[REPO] = Repo(private=True)
    hub.fails = {"/commit/": status}
    with pytest.raises(CopyError) as caught:
        copier(hub).copy(results, lambda: None)
    assert caught.value.retryable


def test_no_server_is_transient_and_in_time(hub: HubServer, results: Results) -> None:
    hub.url = "http://127.0.0.1:1"
    with pytest.raises(CopyError) as caught:
        copier(hub).check()
    assert caught.value.retryable


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"token": "hf_wrong"}, "does not accept the token mine"),
        ({"role": "read"}, "the token mine may only read"),
        ({"repo": "someone/lamp"}, "belongs to me, who is not someone"),
        ({"fails": {"auth-check": 403}}, "the token mine may not write to me/my-lamp"),
        ({"public": True}, "is public; set hub_private_repo false"),
    ],
)
def test_a_refused_destination_is_reported_before_the_run(
    hub: HubServer, changes: dict[str, Any], message: str
) -> None:
    hub.role = changes.get("role", "write")
    hub.fails = changes.get("fails", {})
    if "fails" in changes or "public" in changes:
        hub.repos[REPO] = Repo(private="public" not in changes)
    checked = copier(hub, changes.get("token", TOKEN), hub_model_id=changes.get("repo", REPO))
    with pytest.raises(CopyError, match=message) as caught:
        checked.check()
    assert not caught.value.retryable
    assert "hf_" not in str(caught.value)


def test_a_member_may_publish_for_an_organization(hub: HubServer) -> None:
    copier(hub, hub_model_id="Lab/lamp").check()


def test_a_page_of_a_proxy_is_no_answer(hub: HubServer) -> None:
    hub.fails = {"whoami": 200}
    with pytest.raises(CopyError):
        copier(hub, hub_model_id="someone/lamp").check()


@pytest.mark.parametrize("token", ["hf_one\nhf_two", "hf_\u00e9", "hf_a b"])
def test_what_is_no_token_is_neither_sent_nor_quoted(hub: HubServer, token: str) -> None:
    with pytest.raises(CopyError, match="the secret mine: must be one word") as caught:
        copier(hub, token).check()
    assert "hf_" not in str(caught.value)
    assert hub.tokens == set()
