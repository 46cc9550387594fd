"""The console's application: the API, the pages, and what guards both."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI

from console.pages.site import add_pages
from console.service import Service
from tasks.settings import Settings


def make_app(settings: Settings, service: Service) -> FastAPI:
    """The application.

    Args:
        settings: The console's.
        service: What it does.
    """

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        yield
        await service.close()

    app = FastAPI(
        title="training-worker", docs_url=None, redoc_url=None, openapi_url=None, lifespan=lifespan
    )
    add_pages(app, service)
    return app
