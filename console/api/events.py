"""A job's events as server-sent events: they go on from ``Last-Event-ID``, and end with the job."""

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Annotated

from fastapi import APIRouter, Header, Query, Response
from starlette.responses import StreamingResponse

from console.api.access import Asking, Served
from console.errors import TooManyError
from console.services.event_hub import position_of
from console.services.service import Service
from tasks.api_keys import Caller
from tasks.errors import NoBrokerError
from tasks.state.record import JobStatus

router = APIRouter(tags=["jobs"])

# Proxies close what says nothing for a minute.
_HEARTBEAT_S = 15.0
_HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
_AGAIN_MS = 2000


@router.get(
    "/jobs/{job_id}/events",
    response_class=StreamingResponse,
    responses={
        200: {"content": {"text/event-stream": {}}, "description": "Events until the job ends."},
        204: {"description": "The job is over, and there is nothing after that event."},
    },
)
async def events(
    account: Asking,
    service: Served,
    job_id: str,
    last_event_id: Annotated[str | None, Header()] = None,
    after: Annotated[str, Query(max_length=50)] = "0",
) -> Response:
    """A job's events; a browser's `EventSource` goes on by itself where it broke off."""
    start = last_event_id or after
    position_of(start)
    view = await service.job(account, job_id)
    if start != "0" and JobStatus(view.status).ended:
        async with aclosing(service.event_batches(account, view.id, start)) as batches:
            if await anext(batches, None) is None:
                # Tells a browser not to ask again.
                return Response(status_code=204)
    service.check_streams(account)
    stream = _stream(service, account, view.id, start)
    return StreamingResponse(stream, media_type="text/event-stream", headers=_HEADERS)


async def _stream(service: Service, account: Caller, job_id: str, after: str) -> AsyncIterator[str]:
    yield f"retry: {_AGAIN_MS}\n\n"
    batches = service.event_batches(account, job_id, after, _HEARTBEAT_S)
    async with aclosing(batches):
        try:
            async for batch in batches:
                told = [f"id: {it.id}\nevent: {it.event.kind}\ndata: {it.text}\n\n" for it in batch]
                yield "".join(told) or ":\n\n"
        except (NoBrokerError, TooManyError):
            # It has begun; the reader asks again from where it is, and is told.
            return
