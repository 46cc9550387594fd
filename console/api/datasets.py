"""Saved datasets: named images with captions that any job of a tenant may use."""

from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from console.api.access import ServicesDep, Uploader
from console.api.multipart import FORM_TYPE, save_files
from console.api.openapi import errors, reference
from console.services.images.dataset_views import (
    ChangedDatasetView,
    SavedDatasetDetails,
    SavedDatasetView,
)
from console.services.images.image_collection import NewFile

router = APIRouter(tags=["datasets"])

_MAX_IMAGES = 1000
FileName = Annotated[str, Field(min_length=1, max_length=1000)]
_FORM = {
    "requestBody": {
        "required": True,
        "description": "A form with images, captions or archives.",
        "content": {FORM_TYPE: {"schema": reference("DatasetForm")}},
    }
}
Name = Annotated[str, Query(min_length=1, max_length=100, description="Name of the dataset.")]
Tenant = Annotated[str | None, Query(max_length=100, description="For operators.")]


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)


class NewDataset(_Request):
    """A dataset to save."""

    name: str = Field(min_length=1, max_length=100)
    """Its name, for people."""
    upload: str = Field(max_length=100)
    """Id of a complete upload, whose images are copied."""
    tenant: str | None = Field(default=None, max_length=100)
    """For operators; null for the tenant of the upload."""


class DatasetChanges(_Request):
    """Changes of a dataset."""

    name: str | None = Field(default=None, min_length=1, max_length=100)
    """Its new name; null keeps it."""
    captions: dict[FileName, Annotated[str, Field(max_length=20_000)]] | None = Field(
        default=None, min_length=1, max_length=_MAX_IMAGES
    )
    """Captions by the names of images; an empty one removes it. Null keeps all."""


class ImageNames(_Request):
    """Images of a dataset."""

    images: list[FileName] = Field(min_length=1, max_length=_MAX_IMAGES)
    """Their names."""


@router.post("/datasets", status_code=201, responses=errors(404, 409, 507))
async def create_dataset(
    caller: Uploader, services: ServicesDep, request: NewDataset
) -> ChangedDatasetView:
    """Save the images of an upload as a dataset. The upload stays as it is."""
    return await services.datasets.create(caller, request.name, request.upload, request.tenant)


@router.post(
    "/datasets:multipart", status_code=201, responses=errors(403, 507), openapi_extra=_FORM
)
async def create_dataset_from_files(
    request: Request, caller: Uploader, services: ServicesDep, name: Name, tenant: Tenant = None
) -> ChangedDatasetView:
    """Save images and captions, or those of archives, as a dataset; fields `file` of a form."""
    async with services.image_files.scratch() as scratch:
        files = await _files(request, scratch)
        return await services.datasets.create_from_files(caller, name, files, tenant)


@router.get("/datasets")
async def list_datasets(caller: Uploader, services: ServicesDep) -> tuple[SavedDatasetView, ...]:
    """List the saved datasets, the last changed first."""
    return await services.datasets.all(caller)


@router.get("/datasets/{dataset_id}")
async def get_dataset(
    caller: Uploader, services: ServicesDep, dataset_id: str
) -> SavedDatasetDetails:
    """Return a dataset with its report, its images and their captions."""
    return await services.datasets.get(caller, dataset_id)


@router.patch("/datasets/{dataset_id}", responses=errors(409, 507))
async def update_dataset(
    caller: Uploader, services: ServicesDep, dataset_id: str, request: DatasetChanges
) -> SavedDatasetView:
    """Rename a dataset, write captions, or both at once. Submitted jobs keep what they had."""
    return await services.datasets.update(caller, dataset_id, request.name, request.captions)


@router.post("/datasets/{dataset_id}/files", responses=errors(409, 507), openapi_extra=_FORM)
async def upload_dataset_files(
    request: Request, caller: Uploader, services: ServicesDep, dataset_id: str
) -> ChangedDatasetView:
    """Add images and captions, or those of archives, as fields `file` of a form.

    Nothing is replaced: of two images of one name, the second gets another one, with its caption.
    """
    async with services.image_files.scratch() as scratch:
        files = await _files(request, scratch)
        return await services.datasets.add_files(caller, dataset_id, files)


@router.post("/datasets/{dataset_id}/images:remove", responses=errors(409, 507))
async def delete_dataset_images(
    caller: Uploader, services: ServicesDep, dataset_id: str, request: ImageNames
) -> SavedDatasetView:
    """Remove images with their captions."""
    return await services.datasets.remove_images(caller, dataset_id, request.images)


@router.delete("/datasets/{dataset_id}", status_code=204, response_class=Response)
async def delete_dataset(caller: Uploader, services: ServicesDep, dataset_id: str) -> Response:
    """Delete a dataset. Jobs that were submitted keep its images until they have read them."""
    await services.datasets.delete(caller, dataset_id)
    return Response(status_code=204)


async def _files(request: Request, folder: Path) -> list[NewFile]:
    """Save the files of a request's form."""
    content_type = request.headers.get("content-type", "")
    saved = await save_files(content_type, request.stream(), folder)
    return [NewFile(name, path) for name, path in saved]
