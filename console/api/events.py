"""Events of a job as server-sent events, resumed from ``Last-Event-ID`` until the job's end."""

from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Annotated

from fastapi import APIRouter, Depends, Header, Query, Response
from sse_starlette import EventSourceResponse, ServerSentEvent

from console.api.access import JobReader, ServicesDep
from console.api.openapi import reference
from console.services.jobs.event_hub import EventStream
from tasks.errors import ApiKeysError, NoBrokerError

router = APIRouter(tags=["jobs"])

# Proxies close a connection that is idle for a minute.
_PING_INTERVAL_S = 15
_RETRY_MS = 2000
_SEPARATOR = "\n"
_MESSAGE = {
    "type": "object",
    "description": "A message of the stream.",
    "properties": {
        "id": {"type": "string", "description": "The event's position, for `Last-Event-ID`."},
        "event": {"type": "string", "description": "The event's `kind`."},
        "data": {
            "type": "string",
            "contentMediaType": "application/json",
            "contentSchema": reference("JobEvent"),
        },
        "retry": {"type": "integer", "description": "Milliseconds before a reconnection."},
    },
}


async def open_stream(
    caller: JobReader,
    services: ServicesDep,
    job_id: str,
    last_event_id: Annotated[
        str | None, Header(description="The last event received; goes before `after`.")
    ] = None,
    after: Annotated[
        str, Query(max_length=50, description="The event after which the stream begins.")
    ] = "0",
) -> AsyncIterator[EventStream]:
    """Open the stream of events, and close it after the response."""
    async with services.events.follow(caller, job_id, last_event_id or after) as stream:
        yield stream


@router.get(
    "/jobs/{job_id}/events",
    response_class=EventSourceResponse,
    responses={
        200: {
            "description": "Server-sent events until the job ends; each `data` is a `JobEvent`.",
            "content": {
                "text/event-stream": {"schema": {"type": "string"}, "itemSchema": _MESSAGE}
            },
        },
        204: {"description": "The job has ended, and there are no events after that one."},
    },
)
async def follow_job(
    caller: JobReader,
    services: ServicesDep,
    stream: Annotated[EventStream, Depends(open_stream, scope="request")],
) -> Response:
    """Stream a job's events; a browser's `EventSource` resumes an interrupted stream by itself."""
    if stream.record.status.ended and not await stream.wait():
        # A browser does not reconnect after this status.
        return Response(status_code=204)
    messages = _messages(stream, partial(services.api_keys.is_valid, caller))
    return EventSourceResponse(messages, ping=_PING_INTERVAL_S, sep=_SEPARATOR)


async def _messages(
    stream: EventStream, is_allowed: Callable[[], bool]
) -> AsyncIterator[ServerSentEvent]:
    yield ServerSentEvent(retry=_RETRY_MS, sep=_SEPARATOR)
    try:
        async for batch in stream:
            # A stream outlives its request's check: the reader's key may be revoked meanwhile.
            if not is_allowed():
                return
            for event in batch:
                kind = event.event.kind
                yield ServerSentEvent(event.text, id=event.id, event=kind, sep=_SEPARATOR)
    except (NoBrokerError, ApiKeysError):
        # The response has begun; the reader reconnects and gets the error as a status.
        return
