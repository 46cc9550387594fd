"""Uploads: by the tus protocol 1.0 (tus.io), or as a form."""

import base64
import binascii
import re
from typing import Annotated, Any

from fastapi import APIRouter, Header, Path, Query, Request, Response

from console.api.access import ServicesDep, Uploader
from console.api.multipart import FORM_TYPE, FormFile
from console.api.openapi import binary, errors, header, reference
from console.errors import BadRequestError, PreconditionFailedError, UnsupportedMediaTypeError
from console.services.images.incoming_bytes import CHECKSUMS, Checksum
from console.views import ImageView, UploadView

router = APIRouter(tags=["uploads"])

_VERSION = "1.0.0"
_CHUNK_TYPE = "application/offset+octet-stream"
_NUMBER = re.compile(r"\d{1,18}", re.ASCII)

_TUS = header("Tus-Resumable", {"type": "string", "enum": [_VERSION]}, "Version.", required=True)
_BYTES = {"type": "integer", "minimum": 0}
_LENGTH = header("Upload-Length", _BYTES, "Size of the upload in bytes.", required=True)
_OFFSET = header("Upload-Offset", _BYTES, "Number of bytes that have arrived.", required=True)
_METADATA = header(
    "Upload-Metadata",
    {"type": "string"},
    "Pairs joined by commas, each a name and its value in base64: `filename`, `tenant`.",
)
_CHECKSUM = header(
    "Upload-Checksum",
    {"type": "string"},
    f"Algorithm ({' or '.join(CHECKSUMS)}) and digest of these bytes in base64.",
)


def _headers(*names: str) -> dict[str, Any]:
    """Return the description of a response's headers."""
    described = {
        "Location": ("Path of the upload.", {"type": "string"}),
        "Upload-Offset": ("Number of bytes that have arrived.", {"type": "integer"}),
        "Upload-Length": ("Size of the upload in bytes.", {"type": "integer"}),
        "Tus-Resumable": ("Version.", {"type": "string"}),
        "Tus-Version": ("Version.", {"type": "string"}),
        "Tus-Extension": ("Extensions.", {"type": "string"}),
        "Tus-Max-Size": ("Maximum size of an upload in bytes.", {"type": "integer"}),
        "Tus-Checksum-Algorithm": ("Algorithms of `Upload-Checksum`.", {"type": "string"}),
    }
    return {
        name: {"description": described[name][0], "schema": described[name][1]} for name in names
    }


Text = Annotated[str | None, Header(include_in_schema=False)]


@router.options(
    "/uploads",
    status_code=204,
    response_class=Response,
    responses={
        204: {
            "description": "What this console supports of tus.",
            "headers": _headers(
                "Tus-Resumable",
                "Tus-Version",
                "Tus-Extension",
                "Tus-Max-Size",
                "Tus-Checksum-Algorithm",
            ),
        }
    },
)
async def get_upload_options(services: ServicesDep) -> Response:
    """Return the supported parts of tus; needs no key."""
    return _response(
        204,
        {
            "Tus-Version": _VERSION,
            "Tus-Extension": "creation,checksum,termination",
            "Tus-Max-Size": str(services.settings.upload_max_bytes),
            "Tus-Checksum-Algorithm": ",".join(CHECKSUMS),
        },
    )


@router.post(
    "/uploads",
    status_code=201,
    response_class=Response,
    responses={
        201: {
            "description": "The upload is created; send its bytes to `Location`.",
            "headers": _headers("Location", "Upload-Offset", "Tus-Resumable"),
        },
        **errors(412, 413, 507),
    },
    openapi_extra={"parameters": [_TUS, _LENGTH, _METADATA]},
)
async def create_upload(
    request: Request,
    caller: Uploader,
    services: ServicesDep,
    tus_resumable: Text = None,
    upload_length: Text = None,
    upload_metadata: Text = None,
) -> Response:
    """Create an upload; `Upload-Metadata` may hold `filename` and, for operators, `tenant`."""
    _check_version(tus_resumable)
    metadata = _metadata(upload_metadata or "")
    upload = await services.uploads.create(
        caller,
        metadata.get("filename", ""),
        _number("Upload-Length", upload_length),
        metadata.get("tenant") or None,
    )
    return _response(201, {"Location": _location(request, upload), "Upload-Offset": "0"})


@router.post(
    "/uploads:multipart",
    status_code=201,
    responses={
        201: {"description": "The upload is complete.", "headers": _headers("Location")},
        **errors(403, 507),
    },
    openapi_extra={
        "requestBody": {
            "required": True,
            "description": "A form with one file.",
            "content": {FORM_TYPE: {"schema": reference("UploadForm")}},
        }
    },
)
async def upload_file(
    request: Request,
    response: Response,
    caller: Uploader,
    services: ServicesDep,
    tenant: Annotated[str | None, Query(max_length=100, description="For operators.")] = None,
) -> UploadView:
    """Upload a file at once, as a form with the field `file`; an interruption leaves nothing."""
    form = FormFile(request.headers.get("content-type", ""), request.stream())
    name = await form.start()
    length = request.headers.get("content-length")
    upload = await services.uploads.receive(
        caller, name, None if length is None else int(length), form.data(), tenant
    )
    response.headers["Location"] = _location(request, upload)
    return upload


@router.get("/uploads")
async def list_uploads(caller: Uploader, services: ServicesDep) -> tuple[UploadView, ...]:
    """List the uploads, newest first."""
    return await services.uploads.all(caller)


@router.head(
    "/uploads/{upload_id}",
    response_class=Response,
    responses={
        200: {
            "description": "What has arrived.",
            "headers": _headers("Upload-Offset", "Upload-Length", "Tus-Resumable"),
        }
    },
)
async def get_upload_offset(caller: Uploader, services: ServicesDep, upload_id: str) -> Response:
    """Return the number of bytes received of an upload."""
    upload = await services.uploads.get(caller, upload_id)
    return _response(200, {**_state(upload), "Cache-Control": "no-store"})


@router.get("/uploads/{upload_id}")
async def get_upload(caller: Uploader, services: ServicesDep, upload_id: str) -> UploadView:
    """Return an upload."""
    return await services.uploads.get(caller, upload_id)


@router.patch(
    "/uploads/{upload_id}",
    status_code=204,
    response_class=Response,
    responses={
        204: {
            "description": "The bytes have arrived.",
            "headers": _headers("Upload-Offset", "Upload-Length", "Tus-Resumable"),
        },
        **errors(409, 412, 460, 507),
    },
    openapi_extra={
        "parameters": [_TUS, _OFFSET, _CHECKSUM],
        "requestBody": {
            "required": True,
            "description": "The next bytes of the upload: all, or some.",
            "content": binary(_CHUNK_TYPE),
        },
    },
)
async def append_to_upload(
    request: Request,
    caller: Uploader,
    services: ServicesDep,
    upload_id: str,
    tus_resumable: Text = None,
    upload_offset: Text = None,
    upload_checksum: Text = None,
    content_type: Text = None,
    content_length: Text = None,
) -> Response:
    """Append bytes to an upload, at the offset that HEAD returns."""
    _check_version(tus_resumable)
    if content_type != _CHUNK_TYPE:
        raise UnsupportedMediaTypeError(_CHUNK_TYPE)
    upload = await services.uploads.write(
        caller,
        upload_id,
        _number("Upload-Offset", upload_offset),
        request.stream(),
        None if upload_checksum is None else _checksum(upload_checksum),
        None if content_length is None else _number("Content-Length", content_length),
    )
    return _response(204, _state(upload))


@router.delete(
    "/uploads/{upload_id}", status_code=204, response_class=Response, responses=errors(409)
)
async def delete_upload(caller: Uploader, services: ServicesDep, upload_id: str) -> Response:
    """Delete an upload. Jobs do not need it after their `prepare` stage."""
    await services.uploads.delete(caller, upload_id)
    return _response(204, {})


@router.get("/uploads/{upload_id}/images", responses=errors(409))
async def list_upload_images(
    caller: Uploader, services: ServicesDep, upload_id: str
) -> tuple[ImageView, ...]:
    """List the images of a complete upload, with captions, and make their thumbnails."""
    return await services.uploads.images(caller, upload_id)


@router.get(
    "/uploads/{upload_id}/images/{number}",
    response_class=Response,
    responses={200: {"description": "The thumbnail.", "content": binary("image/jpeg")}},
)
async def download_thumbnail(
    caller: Uploader,
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


def _check_version(tus_resumable: str | None) -> None:
    if tus_resumable != _VERSION:
        raise PreconditionFailedError(_VERSION)


def _location(request: Request, upload: UploadView) -> str:
    return f"{request.scope.get('root_path', '')}/uploads/{upload.id}"


def _number(name: str, text: str | None) -> int:
    if text is None or not _NUMBER.fullmatch(text):
        raise BadRequestError(f"{name} must be a number of bytes", name)
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
            "Upload-Metadata must hold names, each with a value in base64", "Upload-Metadata"
        ) from error


def _checksum(text: str) -> Checksum:
    algorithm, _, value = text.partition(" ")
    try:
        digest = base64.b64decode(value.strip(), validate=True)
    except binascii.Error as error:
        raise BadRequestError(
            "Upload-Checksum must be an algorithm and a digest in base64", "Upload-Checksum"
        ) from error
    if algorithm not in CHECKSUMS:
        names = " or ".join(CHECKSUMS)
        raise BadRequestError(f"Upload-Checksum must use {names}", "Upload-Checksum")
    return Checksum(algorithm, digest)
