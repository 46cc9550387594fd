"""What jobs leave: published files and validation images, by range."""

import base64
import re
from typing import Annotated, Any
from urllib.parse import quote

from fastapi import APIRouter, Header, Response
from starlette.responses import StreamingResponse

from console.api.access import Asking, Served
from console.services.job_files import OpenFile
from console.views import FilesView, Sample

router = APIRouter(tags=["files"])

_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})", re.ASCII)
_TYPES = {".json": "application/json", ".png": "image/png"}
_PARTS: dict[int | str, dict[str, Any]] = {
    206: {"description": "The part that `Range` asks for."},
    304: {"description": "It has not changed."},
    416: {"description": "There is no such part."},
}

Text = Annotated[str | None, Header()]


@router.get("/jobs/{job_id}/files")
async def files(account: Asking, service: Served, job_id: str) -> FilesView:
    """What a job has published, the trained weights first."""
    return await service.files(account, job_id)


@router.head("/jobs/{job_id}/files/{name:path}", response_class=Response)
@router.get("/jobs/{job_id}/files/{name:path}", response_class=StreamingResponse, responses=_PARTS)
async def file(
    account: Asking,
    service: Served,
    job_id: str,
    name: str,
    range: Text = None,
    if_range: Text = None,
    if_none_match: Text = None,
) -> Response:
    """A published file, or a part of it."""
    found = await service.open_file(account, job_id, name)
    return _answer(found, range, if_range, if_none_match, "attachment")


@router.get("/jobs/{job_id}/samples")
async def samples(account: Asking, service: Served, job_id: str) -> tuple[Sample, ...]:
    """A job's validation images so far."""
    return await service.samples(account, job_id)


@router.head("/jobs/{job_id}/samples/{name}", response_class=Response)
@router.get("/jobs/{job_id}/samples/{name}", response_class=StreamingResponse, responses=_PARTS)
async def sample(
    account: Asking,
    service: Served,
    job_id: str,
    name: str,
    range: Text = None,
    if_range: Text = None,
    if_none_match: Text = None,
) -> Response:
    """A validation image."""
    found = await service.open_sample(account, job_id, name)
    return _answer(found, range, if_range, if_none_match, "inline")


def _answer(
    file: OpenFile,
    asked: str | None,
    if_range: str | None,
    if_none_match: str | None,
    disposition: str,
) -> Response:
    etag = f'"{file.sha256}"'
    last = file.name.rpartition("/")[2]
    headers = {
        "ETag": etag,
        "Accept-Ranges": "bytes",
        "Cache-Control": "private, no-cache",
        "Content-Disposition": f"{disposition}; filename*=UTF-8''{quote(last, safe='')}",
        "Repr-Digest": f"sha-256=:{base64.b64encode(bytes.fromhex(file.sha256)).decode()}:",
    }
    if if_none_match is not None and _names(if_none_match, etag):
        return Response(status_code=304, headers=headers)
    start, end, status = 0, file.size, 200
    if asked is not None and if_range in (None, etag):
        match = _RANGE.fullmatch(asked.replace(" ", ""))
        # Several ranges, or another unit: the whole file is a right answer.
        if match is not None and (match[1] or match[2]):
            part = _part(match[1], match[2], file.size)
            if part is None:
                headers["Content-Range"] = f"bytes */{file.size}"
                return Response(status_code=416, headers=headers)
            (start, end), status = part, 206
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{file.size}"
    headers["Content-Length"] = str(end - start)
    kind = _TYPES.get(last[last.rfind(".") :] if "." in last else "", "application/octet-stream")
    return StreamingResponse(file.read(start, end), status, headers=headers, media_type=kind)


def _names(if_none_match: str, etag: str) -> bool:
    return if_none_match.strip() == "*" or etag in re.findall(r'"[^"]*"', if_none_match)


def _part(first: str, last: str, size: int) -> tuple[int, int] | None:
    """Start and end of a range; None where it holds nothing of the file."""
    if not first:
        count = min(int(last), size)
        return (size - count, size) if count else None
    start, end = int(first), size if not last else min(int(last) + 1, size)
    return (start, end) if start < end else None
