"""Jobs: submit, preview, list and change."""

from typing import Annotated, Any

from fastapi import APIRouter, Body, Depends, Header, Query, Request, Response

from console.api.access import CurrentCaller, ServicesDep
from console.views import JobPage, JobView, Preview
from tasks.errors import InvalidJobError, Problem
from tasks.jobs.document import DocumentError, refuse_repeated_keys
from tasks.state.record import JobStatus

router = APIRouter(tags=["jobs"])

_EXAMPLE = {
    "name": "my-cat",
    "preset": "flux_lora_1x40gb",
    "training": {"data_loader": {"dataset": {"type": "ARCHIVE", "archive": "upload:ID"}}},
}
_Body = Annotated[
    dict[str, Any],
    Body(description="A job, as `/v1/schema` describes it.", examples=[_EXAMPLE]),
]


async def _document(request: Request, document: _Body) -> dict[str, Any]:
    """Return the document, without equal keys: of these FastAPI takes the last one."""
    try:
        refuse_repeated_keys(await request.body())
    except DocumentError as error:
        raise InvalidJobError([Problem("", f"a job's document {error}")]) from error
    return document


Document = Annotated[dict[str, Any], Depends(_document)]


@router.post("/jobs", status_code=201)
async def submit(
    caller: CurrentCaller,
    services: ServicesDep,
    document: Document,
    response: Response,
    idempotency_key: Annotated[str | None, Header()] = None,
) -> JobView:
    """Submit a job. The same `id` or `Idempotency-Key` again returns the same job."""
    job = await services.submissions.submit(caller, document, idempotency_key=idempotency_key)
    response.headers["Location"] = f"jobs/{job.id}"
    return job


@router.post("/jobs:preview")
async def preview(
    caller: CurrentCaller, services: ServicesDep, document: Document, check_dataset: bool = True
) -> Preview:
    """Return what would happen to a job, without submitting it."""
    return await services.submissions.preview(caller, document, check_dataset=check_dataset)


@router.get("/jobs")
async def jobs(
    caller: CurrentCaller,
    services: ServicesDep,
    search: Annotated[str | None, Query(max_length=100)] = None,
    status: JobStatus | None = None,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
    cursor: Annotated[str | None, Query(max_length=200)] = None,
    tenant: Annotated[str | None, Query(max_length=100)] = None,
) -> JobPage:
    """List jobs, newest first; `next_cursor` is the cursor of the next page."""
    return await services.jobs.page(
        caller, search=search, status=status, limit=limit, cursor=cursor, tenant=tenant
    )


@router.post("/jobs/{job_id}:cancel")
async def cancel(
    caller: CurrentCaller, services: ServicesDep, job_id: str, save: bool = False
) -> JobView:
    """Cancel a job; with `save`, save a checkpoint first and publish it."""
    return await services.jobs.cancel(caller, job_id, save=save)


@router.post("/jobs/{job_id}:pause")
async def pause(caller: CurrentCaller, services: ServicesDep, job_id: str) -> JobView:
    """Pause a job; a running one saves a checkpoint and frees its GPU."""
    return await services.jobs.pause(caller, job_id)


@router.post("/jobs/{job_id}:resume")
async def resume(caller: CurrentCaller, services: ServicesDep, job_id: str) -> JobView:
    """Resume a paused job from its checkpoint."""
    return await services.jobs.resume(caller, job_id)


@router.get("/jobs/{job_id}")
async def job(caller: CurrentCaller, services: ServicesDep, job_id: str) -> JobView:
    """Return a job."""
    return await services.jobs.get(caller, job_id)
