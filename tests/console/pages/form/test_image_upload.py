import asyncio
from collections.abc import AsyncIterator

import httpx2
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from console.pages.form.image_upload import UploadLimit

PATH = "/_nicegui/client/a-page/upload/7"
# Beside what is allowed for names.
LIMIT, MARGIN = 1000, 2**20


async def pieces(length: int) -> AsyncIterator[bytes]:
    for _ in range(length // 1000):
        yield b"x" * 1000


def sent(length: int, *, says_so: bool, path: str = PATH) -> int:
    async def take(request: Request) -> PlainTextResponse:
        return PlainTextResponse(str(len(await request.body())))

    app = UploadLimit(Starlette(routes=[Route("/{rest:path}", take, methods=["POST"])]), LIMIT)

    async def send() -> int:
        transport = httpx2.ASGITransport(app=app)
        async with httpx2.AsyncClient(transport=transport, base_url="http://console") as client:
            content = b"x" * length if says_so else pieces(length)
            return (await client.post(path, content=content)).status_code

    return asyncio.run(send())


def test_uploads_within_the_limit_are_accepted() -> None:
    assert sent(MARGIN, says_so=True) == 200
    assert sent(MARGIN, says_so=False) == 200


def test_larger_uploads_are_refused_with_and_without_length() -> None:
    assert sent(MARGIN + LIMIT + 1000, says_so=True) == 413
    assert sent(MARGIN + LIMIT + 1000, says_so=False) == 413


def test_other_paths_have_no_limit() -> None:
    assert sent(MARGIN + LIMIT + 1000, says_so=False, path="/v1/uploads/a") == 200
