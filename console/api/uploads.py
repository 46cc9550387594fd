"""Uploads by the tus protocol 1.0 (tus.io), with creation, checksum and termination."""

import base64
import binascii
import re
from typing import Annotated

from fastapi import APIRouter, Header, Path, Request, Response

from console.api.access import CurrentCaller, ServicesDep
from console.api.problems import problem
from console.errors import BadRequestError
from console.services.upload_store import CHECKSUMS, Checksum
from console.views import ImageView, UploadView

router = APIRouter(tags=["uploads"])

_VERSION = "1.0.0"
_CHUNK_TYPE = "application/offset+octet-stream"
_NUMBER = re.compile(r"\d{1,18}", re.ASCII)

Text = Annotated[str | None, Header()]


@router.options("/uploads", status_code=204)
async def capabilities(services: ServicesDep) -> Response:
    """Describe the supported parts of tus."""
    return _response(
        204,
        {
            "Tus-Version": _VERSION,
            "Tus-Extension": "creation,checksum,termination",
            "Tus-Max-Size": str(services.settings.upload_max_bytes),
            "Tus-Checksum-Algorithm": ",".join(CHECKSUMS),
        },
    )


@router.post("/uploads", status_code=201, response_class=Response)
async def create(
    request: Request,
    caller: CurrentCaller,
    services: ServicesDep,
    tus_resumable: Text = None,
    upload_length: Text = None,
    upload_metadata: Text = None,
) -> Response:
    """Create an upload; `Upload-Metadata` may hold `filename` and, for operators, `tenant`."""
    if tus_resumable != _VERSION:
        return _unsupported_version()
    metadata = _metadata(upload_metadata or "")
    upload = await services.uploads.create(
        caller,
        metadata.get("filename", ""),
        _number("Upload-Length", upload_length),
        metadata.get("tenant") or None,
    )
    location = f"{request.scope.get('root_path', '')}/uploads/{upload.id}"
    return _response(201, {"Location": location, "Upload-Offset": "0"})


@router.get("/uploads")
async def uploads(caller: CurrentCaller, services: ServicesDep) -> tuple[UploadView, ...]:
    """List the uploads, newest first."""
    return await services.uploads.all(caller)


@router.head("/uploads/{upload_id}", response_class=Response)
async def offset(caller: CurrentCaller, services: ServicesDep, upload_id: str) -> Response:
    """Return the number of bytes received of an upload."""
    upload = await services.uploads.get(caller, upload_id)
    return _response(200, {**_state(upload), "Cache-Control": "no-store"})


@router.get("/uploads/{upload_id}")
async def upload(caller: CurrentCaller, services: ServicesDep, upload_id: str) -> UploadView:
    """Return an upload."""
    return await services.uploads.get(caller, upload_id)


@router.patch(
    "/uploads/{upload_id}",
    status_code=204,
    response_class=Response,
    openapi_extra={"requestBody": {"content": {_CHUNK_TYPE: {"schema": {"type": "string"}}}}},
)
async def write(
    request: Request,
    caller: CurrentCaller,
    services: ServicesDep,
    upload_id: str,
    tus_resumable: Text = None,
    upload_offset: Text = None,
    upload_checksum: Text = None,
    content_type: Text = None,
    content_length: Text = None,
) -> Response:
    """Append to an upload."""
    if tus_resumable != _VERSION:
        return _unsupported_version()
    if content_type != _CHUNK_TYPE:
        return problem(415, "bad_request", f"Content-Type must be {_CHUNK_TYPE}")
    upload = await services.uploads.write(
        caller,
        upload_id,
        _number("Upload-Offset", upload_offset),
        request.stream(),
        None if upload_checksum is None else _checksum(upload_checksum),
        None if content_length is None else _number("Content-Length", content_length),
    )
    return _response(204, _state(upload))


@router.delete("/uploads/{upload_id}", status_code=204, response_class=Response)
async def delete(caller: CurrentCaller, services: ServicesDep, upload_id: str) -> Response:
    """Delete an upload. Jobs do not need it after their `prepare` stage."""
    await services.uploads.delete(caller, upload_id)
    return _response(204, {})


@router.get("/uploads/{upload_id}/images")
async def images(
    caller: CurrentCaller, services: ServicesDep, upload_id: str
) -> tuple[ImageView, ...]:
    """List the images of a complete upload, with captions, and make their thumbnails."""
    return await services.uploads.images(caller, upload_id)


@router.get(
    "/uploads/{upload_id}/images/{number}",
    response_class=Response,
    responses={200: {"content": {"image/jpeg": {}}}},
)
async def thumbnail(
    caller: CurrentCaller,
    services: ServicesDep,
    upload_id: str,
    number: Annotated[int, Path(ge=0, le=10**6)],
) -> Response:
    """Return the thumbnail of an image."""
    data = await services.uploads.thumbnail(caller, upload_id, number)
    headers = {"Cache-Control": "private, max-age=3600"}
    return Response(data, media_type="image/jpeg", headers=headers)


def _response(status: int, headers: dict[str, str]) -> Response:
    return Response(status_code=status, headers={"Tus-Resumable": _VERSION, **headers})


def _state(upload: UploadView) -> dict[str, str]:
    return {"Upload-Offset": str(upload.offset), "Upload-Length": str(upload.length)}


def _unsupported_version() -> Response:
    detail = f"Tus-Resumable must be {_VERSION}"
    return problem(412, "bad_request", detail, headers={"Tus-Version": _VERSION})


def _number(name: str, text: str | None) -> int:
    if text is None or not _NUMBER.fullmatch(text):
        raise BadRequestError(f"{name} must be a number of bytes")
    return int(text)


def _metadata(text: str) -> dict[str, str]:
    """Return the pairs of ``Upload-Metadata``, decoded."""
    pairs = (part.strip().partition(" ") for part in text.split(",") if part.strip())
    try:
        return {
            name: base64.b64decode(value.strip(), validate=True).decode("utf-8")
            for name, _, value in pairs
        }
    except ValueError as error:
        raise BadRequestError(
            "Upload-Metadata must hold names, each with a value in base64"
        ) from error


def _checksum(text: str) -> Checksum:
    algorithm, _, value = text.partition(" ")
    try:
        digest = base64.b64decode(value.strip(), validate=True)
    except binascii.Error as error:
        raise BadRequestError(
            "Upload-Checksum must be an algorithm and a digest in base64"
        ) from error
    if algorithm not in CHECKSUMS:
        raise BadRequestError(f"Upload-Checksum must use {' or '.join(CHECKSUMS)}")
    return Checksum(algorithm, digest)
