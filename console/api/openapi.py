"""The API's description as OpenAPI, which clients and the API's page are generated from.

FastAPI describes routes and views. This module adds what it cannot know: the schemas of documents
that the services parse themselves, and the errors, which are problem documents.
"""

import json
import re
from collections.abc import Iterator
from copy import deepcopy
from importlib.metadata import version
from typing import Any

from fastapi import FastAPI
from fastapi.routing import APIRoute

from console.api.multipart import FILES_SCHEMA, FORM_SCHEMA
from console.api.problems import PROBLEM_TYPE, ProblemDocument
from console.views import COMPONENT
from tasks.schemas.json_schema import component_schemas

Schema = dict[str, Any]

_SCHEMAS = "#/components/schemas/"
_METHODS = ("get", "head", "options", "post", "put", "patch", "delete")

TAGS = {
    "jobs": "Submit, follow and change jobs.",
    "files": "Download what jobs have published, and their validation images.",
    "webhooks": "Create the secrets that sign jobs' webhooks, and see and repeat deliveries.",
    "uploads": "Upload datasets: resumable by tus 1.0 (tus.io), or at once as a form.",
    "datasets": "Save images with captions under a name, for any job, and edit them.",
    "captions": "Let a model write captions for the images of an upload.",
    "catalog": "Look up presets, options, the fleet and the console's health.",
    "audit": "Read who did what; for operators.",
}
"""Tags of operations, with their descriptions."""

ERRORS = {
    400: ("BadRequest", "A header, a cursor or the body is malformed."),
    401: ("Unauthorized", "The request has no valid key."),
    403: ("Forbidden", "The key may not do this, or a page of another site makes the request."),
    404: ("NotFound", "The thing does not exist, or is not visible to this key."),
    405: ("MethodNotAllowed", "The path has no such method; `Allow` lists those that it has."),
    408: ("RequestTimeout", "The body arrives too slowly."),
    409: ("Conflict", "The state of the job or upload does not allow the request."),
    412: ("PreconditionFailed", "`Tus-Resumable` is missing or names another version."),
    413: ("ContentTooLarge", "The body has too many bytes."),
    415: ("UnsupportedMediaType", "`Content-Type` is not what the operation reads."),
    416: ("RangeNotSatisfiable", "The file has no such range."),
    421: ("MisdirectedRequest", "`Host` is not one of the console's names."),
    422: ("UnprocessableContent", "The job or request is invalid; `errors` lists every problem."),
    429: ("TooManyRequests", "Too many requests; send it again after `Retry-After` seconds."),
    460: ("ChecksumMismatch", "The bytes differ from `Upload-Checksum`; send them again."),
    500: ("InternalError", "An error of the console; its log has the details."),
    503: (
        "Unavailable",
        "The broker, the store or the API keys are unavailable; see `Retry-After`.",
    ),
    507: ("InsufficientStorage", "The disk is full, or the tenant's quota of uploads."),
}
"""Statuses of errors: a name, and the reason."""
_OTHER_ERROR = ("Error", "Any other error.")
_RETRY_AFTER = {"Retry-After": {"description": "Seconds to wait.", "schema": {"type": "integer"}}}
_ERROR_HEADERS: dict[int, Schema] = {
    401: {"WWW-Authenticate": {"schema": {"type": "string"}}},
    405: {"Allow": {"schema": {"type": "string"}}},
    412: {"Tus-Version": {"schema": {"type": "string"}}},
    416: {"Content-Range": {"schema": {"type": "string"}}},
    429: _RETRY_AFTER,
    503: _RETRY_AFTER,
}
_BODY_ERRORS = (408, 413, 415)


def errors(*statuses: int) -> dict[int | str, Schema]:
    """Return the errors that an operation has beside those that its parts imply."""
    return {status: {} for status in statuses}


def reference(name: str) -> Schema:
    """Return a reference to a schema of the description."""
    return {"$ref": f"{_SCHEMAS}{name}"}


def header(name: str, schema: Schema, description: str, *, required: bool = False) -> Schema:
    """Return the description of a header that a route reads by itself."""
    return {
        "name": name,
        "in": "header",
        "required": required,
        "schema": schema,
        "description": description,
    }


def binary(media_type: str) -> Schema:
    """Return the content of a body of bytes."""
    return {media_type: {"schema": {"type": "string", "format": "binary"}}}


def operation_id(route: APIRoute) -> str:
    """Return the id of a route's operation: its function's name, in camel case."""
    first, *rest = route.name.split("_")
    return first + "".join(word.capitalize() for word in rest)


def api_document(api: FastAPI) -> Schema:
    """Return the complete description of the API's application."""
    document = deepcopy(api.openapi())
    for method, path, operation in operations(document):
        words = re.sub("([A-Z])", r" \1", operation["operationId"])
        operation["summary"] = words.capitalize()
        _add_errors(method, path, operation)
    problem = ProblemDocument.model_json_schema(ref_template=f"{_SCHEMAS}{{model}}")
    schemas = document["components"]["schemas"] | component_schemas(_SCHEMAS)
    schemas |= {**problem.pop("$defs"), ProblemDocument.__name__: problem}
    schemas["UploadForm"] = FORM_SCHEMA
    schemas["DatasetForm"] = FILES_SCHEMA
    # FastAPI's own form of errors, which this API does not have.
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    document["components"]["schemas"] = _with_components(dict(sorted(schemas.items())))
    document["components"]["responses"] = {
        _OTHER_ERROR[0]: _error_response(_OTHER_ERROR[1]),
        **{
            name: _error_response(reason, _ERROR_HEADERS.get(status))
            for status, (name, reason) in ERRORS.items()
        },
    }
    return document


def operations(document: Schema) -> Iterator[tuple[str, str, Schema]]:
    """Yield each operation of a description with its method and path."""
    for path, item in document["paths"].items():
        for method in _METHODS:
            if method in item:
                yield method, path, item[method]


def document_text(document: Schema) -> str:
    """Return the description as the text of a file."""
    return json.dumps(document, indent=1, ensure_ascii=False) + "\n"


def product_version() -> str:
    """Return the version of the installed package."""
    return version("training-worker")


def _add_errors(method: str, path: str, operation: Schema) -> None:
    """Describe an operation's errors: those that it names, and those that its parts imply."""
    responses = operation["responses"]
    statuses = {int(status) for status in responses if status.isdigit() and int(status) >= 400}
    statuses |= {421, 429, 500, 503}
    if operation.get("security"):
        statuses |= {401, 403}
    if "{" in path:
        statuses.add(404)
    if operation.get("parameters"):
        statuses |= {400, 422}
    if "requestBody" in operation:
        statuses |= {400, 422, *_BODY_ERRORS}
    succeeded = {status: it for status, it in responses.items() if int(status) < 400}
    failed = {str(status): ERRORS[status] for status in sorted(statuses)}
    operation["responses"] = succeeded | {
        # The response to HEAD has no body.
        status: {"description": reason} if method == "head" else _response_reference(name)
        for status, (name, reason) in {**failed, "default": _OTHER_ERROR}.items()
    }


def _response_reference(name: str) -> Schema:
    return {"$ref": f"#/components/responses/{name}"}


def _error_response(description: str, headers: Schema | None = None) -> Schema:
    content = {PROBLEM_TYPE: {"schema": reference("ProblemDocument")}}
    return {"description": description, "content": content} | (
        {"headers": headers} if headers else {}
    )


def _with_components(schema: Any) -> Any:
    """Return a schema with references where a view names a component for a plain mapping."""
    if isinstance(schema, list):
        return [_with_components(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if COMPONENT not in schema:
        return {name: _with_components(item) for name, item in schema.items()}
    described = {"description": schema["description"]} if "description" in schema else {}
    component = reference(schema[COMPONENT])
    if "anyOf" in schema:
        return {"anyOf": [component, {"type": "null"}], **described}
    return {**component, **described}
