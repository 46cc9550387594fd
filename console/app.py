"""The console's application: API, pages, login, and the gate and security headers around them."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request, Response

from console.api.site import make_api
from console.errors import ConsoleError
from console.gate import Gate, refusal
from console.login import login_routes
from console.pages.layout import text_answer
from console.pages.site import add_pages
from console.security_headers import API, SecurityHeaders
from console.services.services import Services


def make_app(services: Services) -> FastAPI:
    """Return the application.

    Args:
        services: The services, which the application closes when it ends.
    """

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        loops = (
            services.maintain,
            services.maintain_deletions,
            services.maintain_keys,
            services.maintain_sessions,
        )
        maintenance = [asyncio.create_task(loop()) for loop in loops]
        yield
        for task in maintenance:
            task.cancel()
        await services.close()

    settings = services.settings
    app = FastAPI(
        title="training-worker", docs_url=None, redoc_url=None, openapi_url=None, lifespan=lifespan
    )
    app.mount(API, make_api(services))
    app.include_router(
        login_routes(services.sessions, services.wrong_keys, settings.console_base_url)
    )
    add_pages(app, services)
    app.add_exception_handler(ConsoleError, _answer_in_text)
    # The middleware that is added last sees a request first.
    app.add_middleware(Gate, services=services)
    app.add_middleware(SecurityHeaders, settings=settings, refuse=refusal)
    return app


async def _answer_in_text(_request: Request, error: Exception) -> Response:
    assert isinstance(error, ConsoleError)
    return text_answer(error)
