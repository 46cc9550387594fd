"""Jobs: submit, preview, list and change."""

import re
from typing import Annotated, Any, Self

from fastapi import APIRouter, Depends, Header, Query, Request, Response
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, model_validator

from console.api.access import JobReader, JobWriter, ServicesDep
from console.api.openapi import errors, reference
from console.errors import BadRequestError, UnsupportedMediaTypeError
from console.services.jobs.job_records import JobStorageView
from console.views import JobPage, JobView, Preview
from routing.policy import TrainingType
from tasks.errors import InvalidJobError, Problem
from tasks.jobs.document import DocumentError, read_json
from tasks.jobs.edit import JobEdit
from tasks.state.job_search import JobFilter, parse_labels
from tasks.state.record import JobStatus

router = APIRouter(tags=["jobs"])

_JSON = re.compile(r"application/(json|[\w.-]+\+json)\s*(;.*)?", re.IGNORECASE | re.ASCII)
_EXAMPLE = {
    "name": "my-cat",
    "preset": "flux_lora_1x40gb",
    "training": {"data_loader": {"dataset": {"type": "ARCHIVE", "archive": "upload:ID"}}},
}
# The services parse a job, so that all its problems are reported at once and in their words.
_BODY = {
    "requestBody": {
        "required": True,
        "description": "A job, as `/v1/schema` describes it.",
        "content": {"application/json": {"schema": reference("JobRequest"), "example": _EXAMPLE}},
    }
}


async def _document(request: Request) -> Any:
    """Return the document in the body of a request."""
    if not _JSON.fullmatch(request.headers.get("content-type", "")):
        raise UnsupportedMediaTypeError("application/json")
    try:
        return read_json(await request.body())
    except DocumentError as error:
        raise InvalidJobError([Problem("", f"a job's document {error}")]) from error


Document = Annotated[Any, Depends(_document)]


@router.post(
    "/jobs",
    status_code=201,
    responses={
        201: {
            "description": "The job, new or submitted before.",
            "headers": {"Location": {"description": "Path.", "schema": {"type": "string"}}},
        }
    },
    openapi_extra=_BODY,
)
async def submit_job(
    caller: JobWriter,
    services: ServicesDep,
    document: Document,
    response: Response,
    idempotency_key: Annotated[
        str | None, Header(description="Names the job when it has no `id`: 1 to 255 characters.")
    ] = None,
) -> JobView:
    """Submit a job. The same `id` or `Idempotency-Key` again returns the same job."""
    job = await services.submissions.submit(caller, document, idempotency_key=idempotency_key)
    response.headers["Location"] = f"jobs/{job.id}"
    return job


@router.post("/jobs:preview", openapi_extra=_BODY)
async def preview_job(
    caller: JobWriter,
    services: ServicesDep,
    document: Document,
    check_dataset: Annotated[bool, Query(description="Whether to read the dataset.")] = True,
) -> Preview:
    """Return what would happen to a job, without submitting it."""
    return await services.submissions.preview(caller, document, check_dataset=check_dataset)


@router.get("/jobs")
async def list_jobs(
    caller: JobReader,
    services: ServicesDep,
    search: Annotated[
        str | None, Query(max_length=100, description="Text in the id, name, title or notes.")
    ] = None,
    status: JobStatus | None = None,
    queue: Annotated[str | None, Query(max_length=100)] = None,
    type: TrainingType | None = None,
    label: Annotated[
        list[str],
        Query(max_length=32, description="`name=value`, or `name` for any value; repeatable."),
    ] = [],  # noqa: B006 - FastAPI copies it
    created_after: AwareDatetime | None = None,
    created_before: AwareDatetime | None = None,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
    cursor: Annotated[
        str | None, Query(max_length=200, description="`next_cursor` of the page before.")
    ] = None,
    tenant: Annotated[str | None, Query(max_length=100, description="For operators.")] = None,
) -> JobPage:
    """List jobs, newest first; `next_cursor` is the cursor of the next page."""
    try:
        labels = parse_labels(label)
    except ValueError as error:
        raise BadRequestError(str(error), "label") from error
    wanted = JobFilter(
        text=search or "",
        status=status,
        tenant=tenant,
        queue=queue,
        type=type,
        labels=labels,
        created_after=created_after,
        created_before=created_before,
    )
    return await services.jobs.page(caller, wanted, limit=limit, cursor=cursor)


class PriorityChange(BaseModel):
    """What to change: exactly one of both."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    priority: Annotated[int, Field(ge=0, le=9, strict=True)] | None = None
    """The priority among the tenant's waiting jobs; 9 is dispatched first."""
    front: bool = False
    """Move the job in front of all of them."""

    @model_validator(mode="after")
    def _check_one(self) -> Self:
        if (self.priority is not None) == self.front:
            raise ValueError("give either a priority or front: true")
        return self


@router.post("/jobs/{job_id}:prioritize", responses=errors(409))
async def set_job_priority(
    caller: JobWriter, services: ServicesDep, job_id: str, change: PriorityChange
) -> JobView:
    """Change the priority of a waiting job among its tenant's, or move it to the front."""
    return await services.jobs.prioritize(caller, job_id, change.priority)


@router.post("/jobs/{job_id}:cancel", responses=errors(409))
async def cancel_job(
    caller: JobWriter, services: ServicesDep, job_id: str, save: bool = False
) -> JobView:
    """Cancel a job; with `save`, save a checkpoint first and publish it."""
    return await services.jobs.cancel(caller, job_id, save=save)


@router.post("/jobs/{job_id}:pause", responses=errors(409))
async def pause_job(caller: JobWriter, services: ServicesDep, job_id: str) -> JobView:
    """Pause a job; a running one saves a checkpoint and frees its GPU."""
    return await services.jobs.pause(caller, job_id)


@router.post("/jobs/{job_id}:resume", responses=errors(409))
async def resume_job(caller: JobWriter, services: ServicesDep, job_id: str) -> JobView:
    """Resume a paused job from its checkpoint."""
    return await services.jobs.resume(caller, job_id)


@router.get("/jobs/{job_id}")
async def get_job(caller: JobReader, services: ServicesDep, job_id: str) -> JobView:
    """Return a job."""
    return await services.jobs.get(caller, job_id)


@router.patch("/jobs/{job_id}")
async def update_job(
    caller: JobWriter, services: ServicesDep, job_id: str, changes: JobEdit
) -> JobView:
    """Change a job's title, notes or labels; its id and its files keep their names."""
    return await services.records.edit(caller, job_id, changes)


@router.get("/jobs/{job_id}/storage")
async def get_job_storage(caller: JobReader, services: ServicesDep, job_id: str) -> JobStorageView:
    """Return how much of the store a job takes, which its deletion frees."""
    return await services.records.storage(caller, job_id)


@router.delete(
    "/jobs/{job_id}",
    status_code=204,
    responses={202: {"description": "Deleted; the fleet removes the files later."}, **errors(409)},
)
async def delete_job(caller: JobWriter, services: ServicesDep, job_id: str) -> Response:
    """Delete a job that has ended: its record, events, results, checkpoints and samples.

    It is repeated without harm. Usage and the audit log stay, and no job gets the same id for
    as long as a job is kept.
    """
    is_removed = await services.records.delete(caller, job_id)
    return Response(status_code=204 if is_removed else 202)
