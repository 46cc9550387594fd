"""Published files and validation images of jobs, whole or by range."""

import base64
import re
from pathlib import PurePosixPath
from typing import Annotated, Any
from urllib.parse import quote

from fastapi import APIRouter, Header, Query, Request, Response
from starlette.responses import StreamingResponse

from console.api.access import FileReader, ServicesDep
from console.api.openapi import binary, errors, header
from console.errors import RangeNotSatisfiableError
from console.security_headers import API
from console.services.jobs.file_links import MAX_LIFE_S
from console.services.jobs.job_files import OpenFile
from console.views import FilesView, LinkView, SampleView
from tasks.escaping import escaped

router = APIRouter(tags=["files"])

_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})", re.ASCII)
_TYPES = {".json": "application/json", ".png": "image/png"}
_BYTES = "application/octet-stream"
_HEADERS = {
    name: {"description": description, "schema": {"type": "string"}}
    for name, description in {
        "ETag": "The SHA-256 of the file, in quotes.",
        "Accept-Ranges": "`bytes`.",
        "Content-Disposition": "The name of the file.",
        "Content-Range": "The range that is returned.",
        "Repr-Digest": "The SHA-256 of the file, as RFC 9530 writes it.",
    }.items()
}
_EXTRA = {
    "parameters": [
        header("Range", {"type": "string"}, "The bytes to return, such as `bytes=1000-`."),
        header("If-Range", {"type": "string"}, "Heed `Range` only for this `ETag`."),
        header("If-None-Match", {"type": "string"}, "Return nothing for this `ETag`."),
    ]
}

Text = Annotated[str | None, Header(include_in_schema=False)]


def _responses(media_type: str) -> dict[int | str, dict[str, Any]]:
    return {
        200: {
            "description": "The whole file.",
            "content": binary(media_type),
            "headers": _HEADERS,
        },
        206: {
            "description": "The range that `Range` names.",
            "content": binary(media_type),
            "headers": _HEADERS,
        },
        304: {"description": "The file has this `ETag`."},
        **errors(416),
    }


_HEAD_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {"description": "The file's headers.", "headers": _HEADERS},
    304: {"description": "The file has this `ETag`."},
    **errors(416),
}


@router.get("/jobs/{job_id}/files")
async def list_files(caller: FileReader, services: ServicesDep, job_id: str) -> FilesView:
    """List the files that a job has published, the trained weights first."""
    return await services.files.published(caller, job_id)


@router.head(
    "/jobs/{job_id}/files/{name:path}",
    operation_id="inspectFile",
    response_class=Response,
    responses=_HEAD_RESPONSES,
    openapi_extra=_EXTRA,
)
@router.get(
    "/jobs/{job_id}/files/{name:path}",
    response_class=StreamingResponse,
    responses=_responses(_BYTES),
    openapi_extra=_EXTRA,
)
async def download_file(
    caller: FileReader,
    services: ServicesDep,
    job_id: str,
    name: str,
    range: Text = None,
    if_range: Text = None,
    if_none_match: Text = None,
) -> Response:
    """Return a published file, or a range of it."""
    opened = await services.files.open(caller, job_id, name)
    return _response(opened, range, if_range, if_none_match, "attachment")


@router.post("/jobs/{job_id}/files/{name:path}:link", status_code=201)
async def sign_file_link(
    request: Request,
    caller: FileReader,
    services: ServicesDep,
    job_id: str,
    name: str,
    life_s: Annotated[int, Query(ge=1, le=MAX_LIFE_S)] = MAX_LIFE_S,
) -> LinkView:
    """Make a link that downloads a file without a key; it ends with the key that made it."""
    link = await services.links.create(caller, job_id, name, life_s)
    base = (services.settings.console_url or str(request.base_url)).rstrip("/")
    return LinkView(url=f"{base}{API}{link.path}", expires_at=link.expires_at)


@router.get("/jobs/{job_id}/samples")
async def list_samples(
    caller: FileReader, services: ServicesDep, job_id: str
) -> tuple[SampleView, ...]:
    """List a job's validation images so far."""
    return await services.files.samples(caller, job_id)


@router.get(
    "/jobs/{job_id}/samples/{name}/thumbnail",
    response_class=Response,
    responses={200: {"description": "A small image.", "content": binary("image/jpeg")}},
)
async def download_sample_thumbnail(
    caller: FileReader, services: ServicesDep, job_id: str, name: str
) -> Response:
    """Return a small JPEG of a validation image."""
    data = await services.files.thumbnail(caller, job_id, name)
    headers = {"Cache-Control": "private, max-age=600"}
    return Response(data, media_type="image/jpeg", headers=headers)


@router.head(
    "/jobs/{job_id}/samples/{name}",
    operation_id="inspectSample",
    response_class=Response,
    responses=_HEAD_RESPONSES,
    openapi_extra=_EXTRA,
)
@router.get(
    "/jobs/{job_id}/samples/{name}",
    response_class=StreamingResponse,
    responses=_responses("image/png"),
    openapi_extra=_EXTRA,
)
async def download_sample(
    caller: FileReader,
    services: ServicesDep,
    job_id: str,
    name: str,
    range: Text = None,
    if_range: Text = None,
    if_none_match: Text = None,
) -> Response:
    """Return a validation image."""
    opened = await services.files.open_sample(caller, job_id, name)
    return _response(opened, range, if_range, if_none_match, "inline")


def _response(
    file: OpenFile,
    range_header: str | None,
    if_range: str | None,
    if_none_match: str | None,
    disposition: str,
) -> Response:
    etag = f'"{file.sha256}"'
    file_name = escaped(file.name.rpartition("/")[2])
    headers = {
        "ETag": etag,
        "Accept-Ranges": "bytes",
        "Cache-Control": "private, no-cache",
        "Content-Disposition": f"{disposition}; filename*=UTF-8''{quote(file_name, safe='')}",
        "Repr-Digest": f"sha-256=:{base64.b64encode(bytes.fromhex(file.sha256)).decode()}:",
    }
    if if_none_match is not None and _matches(if_none_match, etag):
        return Response(status_code=304, headers=headers)
    start, end, status = 0, file.size, 200
    if range_header is not None and if_range in (None, etag):
        match = _RANGE.fullmatch(range_header.replace(" ", ""))
        # RFC 9110 allows the whole file as the response to several ranges or another unit.
        if match is not None and (match[1] or match[2]):
            bounds = _bounds(match[1], match[2], file.size)
            if bounds is None:
                raise RangeNotSatisfiableError(file.size)
            (start, end), status = bounds, 206
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{file.size}"
    headers["Content-Length"] = str(end - start)
    media_type = _TYPES.get(PurePosixPath(file_name).suffix, _BYTES)
    return StreamingResponse(file.read(start, end), status, headers=headers, media_type=media_type)


def _matches(if_none_match: str, etag: str) -> bool:
    return if_none_match.strip() == "*" or etag in re.findall(r'"[^"]*"', if_none_match)


def _bounds(first: str, last: str, size: int) -> tuple[int, int] | None:
    """Return start and end of a range; None when it is outside the file."""
    if not first:
        count = min(int(last), size)
        return (size - count, size) if count else None
    start, end = int(first), size if not last else min(int(last) + 1, size)
    return (start, end) if start < end else None
