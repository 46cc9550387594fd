"""The audit log, for operators."""

from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import BaseModel

from console.api.access import Administrator, ServicesDep
from console.services.threads import in_thread
from tasks.state.audit import AuditEntry

router = APIRouter(tags=["audit"])

Text = Annotated[str | None, Query(max_length=200)]


class AuditPage(BaseModel):
    """A page of the audit log, newest entries first."""

    entries: tuple[AuditEntry, ...]
    next_before: str | None
    """The ``before`` of the next page; null on the last one."""


@router.get("/audit")
async def list_audit_entries(
    _caller: Administrator,
    services: ServicesDep,
    actor: Text = None,
    action: Text = None,
    job: Text = None,
    tenant: Text = None,
    limit: Annotated[int, Query(ge=1, le=500)] = 100,
    before: Annotated[str | None, Query(pattern=r"^\d{1,15}-\d{1,15}$")] = None,
) -> AuditPage:
    """List who did what, newest first; `action` may be a group of actions, such as `key`."""
    entries = await in_thread(services.client.audit.entries)(
        limit=limit + 1, before=before, actor=actor, action=action, subject=job, tenant=tenant
    )
    page = tuple(entries[:limit])
    return AuditPage(entries=page, next_before=page[-1].id if len(entries) > limit else None)
