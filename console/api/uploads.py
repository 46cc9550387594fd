"""Uploads by the tus protocol 1.0 (tus.io): creation, checksum, termination."""

import base64
import binascii
import re
from typing import Annotated

from fastapi import APIRouter, Header, Path, Request, Response

from console.api.access import Asking, Served
from console.api.problems import problem
from console.errors import BadRequestError
from console.services.uploads import CHECKSUMS, Checksum
from console.views import ImageView, UploadView

router = APIRouter(tags=["uploads"])

_VERSION = "1.0.0"
_PIECE = "application/offset+octet-stream"
_NUMBER = re.compile(r"\d{1,18}", re.ASCII)

Text = Annotated[str | None, Header()]


@router.options("/uploads", status_code=204)
async def can(service: Served) -> Response:
    """What of tus is there."""
    return _done(
        204,
        {
            "Tus-Version": _VERSION,
            "Tus-Extension": "creation,checksum,termination",
            "Tus-Max-Size": str(service.settings.upload_max_bytes),
            "Tus-Checksum-Algorithm": ",".join(CHECKSUMS),
        },
    )


@router.post("/uploads", status_code=201, response_class=Response)
async def create(
    request: Request,
    account: Asking,
    service: Served,
    tus_resumable: Text = None,
    upload_length: Text = None,
    upload_metadata: Text = None,
) -> Response:
    """Begin an upload; `Upload-Metadata` may hold `filename` and, for operators, `tenant`."""
    if tus_resumable != _VERSION:
        return _other_version()
    about = _metadata(upload_metadata or "")
    upload = await service.create_upload(
        account,
        about.get("filename", ""),
        _number("Upload-Length", upload_length),
        about.get("tenant") or None,
    )
    location = f"{request.scope.get('root_path', '')}/uploads/{upload.id}"
    return _done(201, {"Location": location, "Upload-Offset": "0"})


@router.get("/uploads")
async def uploads(account: Asking, service: Served) -> tuple[UploadView, ...]:
    """The uploads there are, the newest first."""
    return await service.uploads(account)


@router.head("/uploads/{upload_id}", response_class=Response)
async def offset(account: Asking, service: Served, upload_id: str) -> Response:
    """How much of an upload is here."""
    upload = await service.upload(account, upload_id)
    return _done(200, {**_state(upload), "Cache-Control": "no-store"})


@router.get("/uploads/{upload_id}")
async def upload(account: Asking, service: Served, upload_id: str) -> UploadView:
    """An upload."""
    return await service.upload(account, upload_id)


@router.patch(
    "/uploads/{upload_id}",
    status_code=204,
    response_class=Response,
    openapi_extra={"requestBody": {"content": {_PIECE: {"schema": {"type": "string"}}}}},
)
async def write(
    request: Request,
    account: Asking,
    service: Served,
    upload_id: str,
    tus_resumable: Text = None,
    upload_offset: Text = None,
    upload_checksum: Text = None,
    content_type: Text = None,
) -> Response:
    """Go on with an upload."""
    if tus_resumable != _VERSION:
        return _other_version()
    if content_type != _PIECE:
        return problem(415, "bad_request", f"Content-Type must be {_PIECE}")
    length = request.headers.get("content-length")
    written = await service.write_upload(
        account,
        upload_id,
        _number("Upload-Offset", upload_offset),
        request.stream(),
        None if upload_checksum is None else _checksum(upload_checksum),
        _number("Content-Length", length) if length is not None else None,
    )
    return _done(204, _state(written))


@router.delete("/uploads/{upload_id}", status_code=204, response_class=Response)
async def delete(account: Asking, service: Served, upload_id: str) -> Response:
    """Remove an upload; jobs whose `prepare` stage is done need it no more."""
    await service.delete_upload(account, upload_id)
    return _done(204, {})


@router.get("/uploads/{upload_id}/images")
async def images(account: Asking, service: Served, upload_id: str) -> tuple[ImageView, ...]:
    """The images of a whole upload, with captions; makes their thumbnails."""
    return await service.images(account, upload_id)


@router.get(
    "/uploads/{upload_id}/images/{number}",
    response_class=Response,
    responses={200: {"content": {"image/jpeg": {}}}},
)
async def thumbnail(
    account: Asking, service: Served, upload_id: str, number: Annotated[int, Path(ge=0, le=10**6)]
) -> Response:
    """An image of an upload, small."""
    data = await service.thumbnail(account, upload_id, number)
    headers = {"Cache-Control": "private, max-age=3600"}
    return Response(data, media_type="image/jpeg", headers=headers)


def _done(status: int, headers: dict[str, str]) -> Response:
    return Response(status_code=status, headers={"Tus-Resumable": _VERSION, **headers})


def _state(upload: UploadView) -> dict[str, str]:
    return {"Upload-Offset": str(upload.offset), "Upload-Length": str(upload.length)}


def _other_version() -> Response:
    told = f"Tus-Resumable must be {_VERSION}"
    return problem(412, "bad_request", told, headers={"Tus-Version": _VERSION})


def _number(name: str, text: str | None) -> int:
    if text is None or not _NUMBER.fullmatch(text):
        raise BadRequestError(f"{name} must be a number of bytes")
    return int(text)


def _metadata(text: str) -> dict[str, str]:
    """The pairs of ``Upload-Metadata``: names, and values in base64."""
    pairs = (part.strip().partition(" ") for part in text.split(",") if part.strip())
    try:
        return {
            name: base64.b64decode(value.strip(), validate=True).decode("utf-8")
            for name, _, value in pairs
        }
    except ValueError as error:
        raise BadRequestError("Upload-Metadata holds names, each with a value in base64") from error


def _checksum(text: str) -> Checksum:
    algorithm, _, value = text.partition(" ")
    try:
        digest = base64.b64decode(value.strip(), validate=True)
    except binascii.Error as error:
        raise BadRequestError("Upload-Checksum is an algorithm and a digest in base64") from error
    if algorithm not in CHECKSUMS:
        raise BadRequestError(f"Upload-Checksum takes {', '.join(CHECKSUMS)}")
    return Checksum(algorithm, digest)
