"""The console's application: the API, the pages, and what guards both."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI

from console.api.site import make_api
from console.login import login_routes
from console.pages.site import add_pages
from console.security_headers import API, Guard
from console.services.service import Service
from tasks.settings.settings import Settings


def make_app(settings: Settings, service: Service) -> FastAPI:
    """The application.

    Args:
        settings: The console's.
        service: What it does.
    """

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        upkeep = asyncio.create_task(service.upkeep())
        yield
        upkeep.cancel()
        await service.close()

    app = FastAPI(
        title="training-worker", docs_url=None, redoc_url=None, openapi_url=None, lifespan=lifespan
    )
    app.mount(API, make_api(service))
    app.include_router(login_routes(service))
    add_pages(app, service)
    # The last one is asked first.
    app.add_middleware(Guard, settings=settings)
    return app
