"""What there is to choose from: presets, options, the fleet; and whether the console is well."""

from dataclasses import asdict
from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel

from console.api.access import Asking, Served
from console.views import FleetView, PresetView
from tasks.jobs.options import training_options

router = APIRouter(tags=["catalog"])


class Health(BaseModel):
    """That the console answers, and the broker it."""

    status: str


@router.get("/presets")
async def presets(account: Asking, service: Served) -> tuple[PresetView, ...]:
    """All presets; of each type, the one that suits this fleet is `recommended`."""
    return await service.presets(account)


@router.get("/schema")
async def schema(_account: Asking, service: Served) -> dict[str, Any]:
    """The JSON schema of a job."""
    return service.schema()


@router.get("/options")
async def options(_account: Asking) -> dict[str, Any]:
    """Every option of the training types, with type, default and meaning."""
    return {name: asdict(it) for name, it in training_options().items()}


@router.get("/fleet")
async def fleet(account: Asking, service: Served) -> FleetView:
    """GPUs, what each does, and who waits."""
    return await service.fleet(account)


@router.get("/health")
async def health(service: Served) -> Health:
    """Whether the console and its broker answer; needs no key."""
    await service.look_after()
    return Health(status="ok")
