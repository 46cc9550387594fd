"""Events of a job as server-sent events, resumed from ``Last-Event-ID`` until the job's end."""

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Annotated

from fastapi import APIRouter, Header, Query, Response
from sse_starlette import EventSourceResponse, ServerSentEvent

from console.api.access import CurrentCaller, ServicesDep
from console.errors import TooManyError
from console.services.event_hub import EventHub, position_of
from tasks.api_keys import Caller
from tasks.errors import NoBrokerError
from tasks.state.record import JobStatus

router = APIRouter(tags=["jobs"])

# Proxies close a connection that is idle for a minute.
_PING_INTERVAL_S = 15
_RETRY_MS = 2000
_SEPARATOR = "\n"


@router.get(
    "/jobs/{job_id}/events",
    response_class=EventSourceResponse,
    responses={
        200: {"content": {"text/event-stream": {}}, "description": "Events until the job ends."},
        204: {"description": "The job has ended, and there are no events after that one."},
    },
)
async def events(
    caller: CurrentCaller,
    services: ServicesDep,
    job_id: str,
    last_event_id: Annotated[str | None, Header()] = None,
    after: Annotated[str, Query(max_length=50)] = "0",
) -> Response:
    """Stream a job's events; a browser's `EventSource` resumes an interrupted stream by itself."""
    start = last_event_id or after
    position_of(start)
    job = await services.jobs.get(caller, job_id)
    if start != "0" and JobStatus(job.status).ended:
        async with aclosing(services.events.follow(caller, job.id, start)) as batches:
            if await anext(batches, None) is None:
                # A browser does not reconnect after this status.
                return Response(status_code=204)
    services.events.check_limit(caller)
    stream = _stream(services.events, caller, job.id, start)
    return EventSourceResponse(stream, ping=_PING_INTERVAL_S, sep=_SEPARATOR)


async def _stream(
    hub: EventHub, caller: Caller, job_id: str, after: str
) -> AsyncIterator[ServerSentEvent]:
    yield ServerSentEvent(retry=_RETRY_MS, sep=_SEPARATOR)
    async with aclosing(hub.follow(caller, job_id, after)) as batches:
        try:
            async for batch in batches:
                for event in batch:
                    kind = event.event.kind
                    yield ServerSentEvent(event.text, id=event.id, event=kind, sep=_SEPARATOR)
        except (NoBrokerError, TooManyError):
            # The response has begun; the reader reconnects and gets the error as a status.
            return
