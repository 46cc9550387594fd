"""Jobs: submit, look, change."""

from typing import Annotated, Any

from fastapi import APIRouter, Body, Header, Query, Response

from console.api.access import Asking, Served
from console.views import JobPage, JobView, Preview
from tasks.state.record import JobStatus

router = APIRouter(tags=["jobs"])

_EXAMPLE = {
    "name": "my-cat",
    "preset": "flux_lora_1x40gb",
    "training": {"data_loader": {"dataset": {"type": "ARCHIVE", "archive": "upload:ID"}}},
}
Document = Annotated[
    dict[str, Any],
    Body(description="A job, as `/v1/schema` describes it.", examples=[_EXAMPLE]),
]


@router.post("/jobs", status_code=201)
async def submit(
    account: Asking,
    service: Served,
    document: Document,
    response: Response,
    idempotency_key: Annotated[str | None, Header()] = None,
) -> JobView:
    """Submit a job. The same `id` or `Idempotency-Key` again is the same job."""
    job = await service.submit(account, document, idempotency_key=idempotency_key)
    response.headers["Location"] = f"jobs/{job.id}"
    return job


@router.post("/jobs:preview")
async def preview(
    account: Asking, service: Served, document: Document, check_dataset: bool = True
) -> Preview:
    """What would become of a job; nothing is sent."""
    return await service.preview(account, document, check_dataset=check_dataset)


@router.get("/jobs")
async def jobs(
    account: Asking,
    service: Served,
    search: Annotated[str | None, Query(max_length=100)] = None,
    status: JobStatus | None = None,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
    cursor: Annotated[str | None, Query(max_length=200)] = None,
    tenant: Annotated[str | None, Query(max_length=100)] = None,
) -> JobPage:
    """Some of the jobs, newest first; `next` goes on."""
    return await service.jobs(
        account, search=search, status=status, limit=limit, cursor=cursor, tenant=tenant
    )


@router.post("/jobs/{job_id}:cancel")
async def cancel(account: Asking, service: Served, job_id: str, save: bool = False) -> JobView:
    """Cancel a job; with `save`, a checkpoint first, and publish what there is."""
    return await service.cancel(account, job_id, save=save)


@router.post("/jobs/{job_id}:pause")
async def pause(account: Asking, service: Served, job_id: str) -> JobView:
    """Keep a job from going on; a running one saves a checkpoint and frees its GPU."""
    return await service.pause(account, job_id)


@router.post("/jobs/{job_id}:resume")
async def resume(account: Asking, service: Served, job_id: str) -> JobView:
    """Let a paused job go on from its checkpoint."""
    return await service.resume(account, job_id)


@router.get("/jobs/{job_id}")
async def job(account: Asking, service: Served, job_id: str) -> JobView:
    """A job."""
    return await service.job(account, job_id)
