"""Presets, options, the fleet, and the health of the console."""

import json
from dataclasses import asdict
from functools import cache
from typing import Annotated, Any

from fastapi import APIRouter, Query, Response
from fastapi.encoders import jsonable_encoder
from pydantic import BaseModel

from console.api.access import JobReader, ServicesDep
from console.services.fleet import FleetView
from console.views import PresetView, UsagePage
from tasks.jobs.job import TrainingJob
from tasks.jobs.options import TypeOptions, training_options
from tasks.state.tenants.usage import MONTH

router = APIRouter(tags=["catalog"])


class Health(BaseModel):
    """Health of the console and its broker."""

    status: str


@router.get("/presets")
async def list_presets(_caller: JobReader, services: ServicesDep) -> tuple[PresetView, ...]:
    """List the presets; the best one of each type for this fleet is `recommended`."""
    return await services.fleet.presets()


@router.get("/schema", response_model=dict[str, Any])
async def get_job_schema(_caller: JobReader) -> Response:
    """Return the JSON schema of a job."""
    return Response(_schema(), media_type="application/json")


@router.get("/options", response_model=dict[str, TypeOptions])
async def list_options(_caller: JobReader) -> Response:
    """List the options of every training type, with type, default and description."""
    return Response(_options(), media_type="application/json")


@router.get("/fleet")
async def get_fleet(caller: JobReader, services: ServicesDep) -> FleetView:
    """Return the workers and what they run, and the queues and how many jobs wait."""
    return await services.fleet.get(caller)


@router.get("/usage")
async def list_usage(
    caller: JobReader,
    services: ServicesDep,
    month: Annotated[
        str | None, Query(pattern=MONTH.pattern, description="`2026-11`; by default, this month.")
    ] = None,
    tenant: Annotated[str | None, Query(max_length=100, description="For operators.")] = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> UsagePage:
    """Return what the tenants that the key sees used in a month (UTC), the largest first."""
    return await services.fleet.usage(caller, month, tenant, limit)


@router.get("/health")
async def get_health(services: ServicesDep) -> Health:
    """Return 200 if the console and its broker are available; needs no key."""
    await services.fleet.ping()
    return Health(status="ok")


# Each takes 50 ms to make, which would delay every other request.
@cache
def _schema() -> str:
    return json.dumps(TrainingJob.model_json_schema())


@cache
def _options() -> str:
    options = {name: asdict(option) for name, option in training_options().items()}
    return json.dumps(jsonable_encoder(options))
