"""The committed description of the API, its names, and its errors."""

import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import httpx2
import pytest
from jsonschema import Draft202012Validator

from console.api.openapi import ERRORS, TAGS, operations
from console.errors import ConsoleError
from tests.console.conftest import Console, job

FILE = Path(__file__).parents[3] / "deploy" / "contract" / "openapi.json"
DOCUMENT: dict[str, Any] = json.loads(FILE.read_text("utf-8"))
OPERATIONS = [operation for *_, operation in operations(DOCUMENT)]
VERBS = {
    "append",
    "cancel",
    "create",
    "delete",
    "download",
    "follow",
    "get",
    "inspect",
    "list",
    "move",
    "pause",
    "preview",
    "redeliver",
    "resume",
    "revoke",
    "set",
    "sign",
    "submit",
    "update",
    "upload",
}


def test_the_description_is_current_and_the_same_in_each_run() -> None:
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    command = [sys.executable, "-P", "-m", "console.api"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    current = done.stdout == FILE.read_text("utf-8")
    assert current, "run: training-worker contract deploy/contract"


def test_the_console_serves_the_committed_description(console: Console) -> None:
    assert httpx2.get(f"{console.url}/v1/openapi.json").json() == DOCUMENT


def test_operation_ids_are_a_verb_and_a_noun() -> None:
    """An id is the name of the route's function in camel case; generated clients take its words."""
    ids = [operation["operationId"] for operation in OPERATIONS]
    wrong = [
        name
        for name in ids
        if re.fullmatch(r"[a-z]+([A-Z][a-z]+)+", name) is None
        or re.split(r"[A-Z]", name)[0] not in VERBS
    ]
    assert not wrong, (
        f"{wrong}: name the route's function by a verb of {sorted(VERBS)} and a noun, such as "
        "list_jobs; add a verb to VERBS only if none of these says it"
    )
    assert [name for name, count in Counter(ids).items() if count > 1] == []


def test_every_operation_is_described() -> None:
    for operation in OPERATIONS:
        assert operation.get("description"), f"{operation['operationId']} has no docstring"
        assert set(operation["tags"]) <= set(TAGS), f"add the tag of {operation['operationId']}"
        assert len(operation["tags"]) == 1
    assert {tag["name"] for tag in DOCUMENT["tags"]} == {it["tags"][0] for it in OPERATIONS}


def test_every_body_has_a_form() -> None:
    untyped = [
        operation["operationId"]
        for operation in OPERATIONS
        for content in _contents(operation)
        if not content.get("schema")
    ]
    assert untyped == [], "give each route a response model or a content with a schema"


def _contents(operation: dict[str, Any]) -> list[dict[str, Any]]:
    bodies = [operation.get("requestBody", {}), *operation["responses"].values()]
    return [content for body in bodies for content in body.get("content", {}).values()]


def test_every_error_is_a_problem_document() -> None:
    responses = DOCUMENT["components"]["responses"]
    for response in responses.values():
        assert list(response["content"]) == ["application/problem+json"]
    for method, _, operation in operations(DOCUMENT):
        for status, response in operation["responses"].items():
            if method == "head":
                assert "content" not in response
            elif status == "default" or int(status) >= 400:
                assert response["$ref"].rpartition("/")[2] in responses


def test_every_error_of_the_console_is_described() -> None:
    known = ConsoleError.__subclasses__()
    assert {it.status for it in known} <= set(ERRORS)
    assert [it for it in known if not it.remedy] == []


def test_every_reference_has_its_target() -> None:
    text = json.dumps(DOCUMENT)
    components = DOCUMENT["components"]
    for kind, name in set(re.findall(r'"#/components/(\w+)/(\w+)"', text)):
        assert name in components[kind], f"{kind}/{name}"
    assert "$defs" not in text


def test_every_schema_is_valid() -> None:
    for schema in DOCUMENT["components"]["schemas"].values():
        Draft202012Validator.check_schema(schema)


@pytest.mark.parametrize(
    ("method", "path", "headers", "status", "code", "location"),
    [
        ("GET", "/none", {}, 404, "not_found", ""),
        ("GET", "/jobs/none", {}, 404, "unknown_job", ""),
        ("PUT", "/jobs", {}, 405, "method_not_allowed", ""),
        ("POST", "/uploads", {}, 412, "precondition_failed", "Tus-Resumable"),
        ("POST", "/jobs", {"Content-Type": "text/plain"}, 415, "unsupported_media_type", None),
        ("GET", "/jobs", {"Host": "evil.example"}, 421, "misdirected_request", "Host"),
        ("GET", "/jobs?limit=0", {}, 422, "invalid_request", "query.limit"),
        ("GET", "/jobs?cursor=x", {}, 400, "bad_request", "cursor"),
        ("GET", "/jobs", {"Authorization": "Bearer no"}, 401, "unauthorized", "Authorization"),
    ],
)
def test_errors_say_what_is_wrong_where_and_what_to_do(
    acme: httpx2.Client,
    method: str,
    path: str,
    headers: dict[str, str],
    status: int,
    code: str,
    location: str | None,
) -> None:
    answer = acme.request(method, path, headers=headers, content=b"" if method == "GET" else b"{}")
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert (answer.status_code, problem["status"], problem["code"]) == (status, status, code)
    assert problem["retryable"] is False
    assert problem["title"]
    [found] = problem["errors"]
    assert found["location"] == ("Content-Type" if location is None else location)
    assert found["message"]
    assert found["remedy"]


def test_problems_of_a_job_have_codes_and_remedies(acme: httpx2.Client) -> None:
    wrong = {"lora_rank_dim": 0, "lora_rnak_dim": 4, "weight_dtype": "int3", "seed": "x"}
    errors = acme.post("/jobs", json=job(training=wrong)).json()["errors"]
    codes = {it["location"].rpartition(".")[2]: it["code"] for it in errors}
    assert codes == {
        "lora_rank_dim": "out_of_range",
        "lora_rnak_dim": "unknown_option",
        "weight_dtype": "unknown_choice",
        "seed": "wrong_type",
    }
    assert all(it["remedy"] for it in errors)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'{\n "name": }', "is not JSON: line 2, column 10"),
        (b"\xff", "is not UTF-8"),
        (b"[" * 100_000, "is nested too deeply"),
        (b'{"seed": ' + b"9" * 5000 + b"}", "is not JSON: "),
        (b"[]", "is a mapping"),
    ],
)
def test_a_body_that_is_no_job_is_refused_by_its_place(
    acme: httpx2.Client, body: bytes, message: str
) -> None:
    answer = acme.post("/jobs", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 422, answer.text
    assert message in answer.json()["errors"][0]["message"]


def test_a_job_that_fits_nowhere_names_the_options_to_change(acme: httpx2.Client) -> None:
    huge = job(training={"train_batch_size": 64, "gradient_checkpointing": False})
    answer = acme.post("/jobs", json=huge)
    assert answer.json()["code"] == "does_not_fit"
    [problem] = answer.json()["errors"]
    assert problem["location"] == "training"
    assert problem["remedy"].startswith("set gradient_checkpointing true or ")
