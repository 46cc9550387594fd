"""Captions that a model writes for the images of an upload."""

from typing import Annotated

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field

from console.api.access import ServicesDep, Uploader
from console.api.openapi import errors
from console.services.images.captioning import CaptionRunView
from tasks.captions.requests import MAX_IMAGES, CaptionStyle

router = APIRouter(tags=["captions"])

FileName = Annotated[str, Field(min_length=1, max_length=1000)]


class CaptionRequest(BaseModel):
    """What is to be captioned."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    upload: str = Field(max_length=100)
    """Id of the upload."""
    files: list[FileName] | None = Field(default=None, min_length=1, max_length=MAX_IMAGES)
    """Names of the images in the upload; null for all."""
    style: CaptionStyle = "detailed"
    """One sentence, or all that is to be seen. BLIP writes one sentence in any case."""


@router.post("/captions", status_code=202, responses=errors(404, 409))
async def create_captions(
    caller: Uploader, services: ServicesDep, request: CaptionRequest
) -> CaptionRunView:
    """Start a run that writes captions; 409 if no model is configured. No upload is changed."""
    return await services.captioning.start(
        caller, request.upload, only=request.files, style=request.style
    )


@router.get("/captions/{run_id}")
async def get_captions(caller: Uploader, services: ServicesDep, run_id: str) -> CaptionRunView:
    """Return a run with its captions so far. A tenant's newest runs are kept for a day."""
    return await services.captioning.get(caller, run_id)


@router.delete("/captions/{run_id}", status_code=204)
async def cancel_captions(caller: Uploader, services: ServicesDep, run_id: str) -> None:
    """Cancel a run, or remove one that has ended, with its captions."""
    await services.captioning.cancel(caller, run_id)
