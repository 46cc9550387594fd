"""Requests generated from the API description: none may cause a server error."""

from typing import Any

import httpx2
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import Case, SerializationContext
from schemathesis.core.result import Ok
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.console.conftest import Console, job, upload

_EXAMPLES = 6
# What the API answers is what its description promises.
CONFORMANCE = [
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]


@schemathesis.serializer("application/offset+octet-stream")
def as_text(_context: SerializationContext, value: Any) -> bytes:
    return str(value).encode("utf-8", "surrogatepass")


@pytest.mark.timeout(120)
@pytest.mark.parametrize("real", [False, True], ids=["generated ids", "real ids"])
def test_generated_requests_cause_no_server_error(
    console: Console, acme: httpx2.Client, real: bool
) -> None:
    document = httpx2.get(f"{console.url}/v1/openapi.json").json()
    ids = {
        "job_id": acme.post("/jobs", json=job()).json()["id"],
        "upload_id": upload(acme, b"no archive"),
    }
    acme.post(f"/jobs/{ids['job_id']}:cancel")
    headers = {"Authorization": f"Bearer {console.keys['acme']}"}
    requested: set[str] = set()

    def ask(case: Case[Any]) -> None:
        if real:
            given_ids = {name: ids[name] for name in case.path_parameters or {} if name in ids}
            case.path_parameters = {**(case.path_parameters or {}), **given_ids}
        answer = case.call(base_url=f"{console.url}/v1", headers=headers, timeout=30)
        requested.add(case.operation.label)
        assert answer.status_code < 500, case.as_curl_command()
        if answer.status_code >= 400:
            kind = answer.headers["content-type"]
            assert kind == ["application/problem+json"], case.as_curl_command()
        # The schema of a stream is its text, for generators of clients; schemathesis reads events.
        is_stream = case.operation.definition.raw["operationId"] == "followJob"
        excluded = [response_schema_conformance] if is_stream else []
        case.validate_response(answer, checks=CONFORMANCE, excluded_checks=excluded)

    for result in schemathesis.openapi.from_dict(document).get_all_operations():
        assert isinstance(result, Ok)
        operation = result.ok()
        if real and not set(ids) & {it.name for it in operation.path_parameters}:
            continue
        settings(
            max_examples=_EXAMPLES,
            deadline=None,
            database=None,
            derandomize=True,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )(given(operation.as_strategy())(ask))()
    assert len(requested) >= (10 if real else 25)
