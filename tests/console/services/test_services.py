import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from redis.asyncio import Redis

from console.errors import ForbiddenError
from console.services.services import Services, open_services
from tasks.access.api_keys import Caller
from tasks.errors import NoBrokerError, UnknownJobError
from tests.console.conftest import PNG, Console, Served, job, zipped

ACME, ZOO, OPERATOR = Caller("a", "acme"), Caller("z", "zoo"), Caller("o", None)


def run(served: Served, use: Callable[[Services], Awaitable[None]]) -> None:
    """Run a coroutine with services of its own event loop."""

    async def main() -> None:
        assert served.settings.broker_url is not None
        services = open_services(served.settings, served.settings.broker_url.get_secret_value())
        await use(services)
        await services.close()

    asyncio.run(main())


def test_images_of_a_page_become_a_dataset(
    console: Console, served: Served, tmp_path: Path
) -> None:
    archive = tmp_path / "images.zip"
    archive.write_bytes(zipped({"cat.png": PNG, "cat.txt": b"a cat"}))

    async def use(services: Services) -> None:
        upload = await services.uploads.put(ACME, "four cats", archive)
        assert (upload.name, upload.tenant, upload.is_complete) == ("four cats", "acme", True)
        dataset = {"type": "ARCHIVE", "archive": upload.source}
        document = job(training={"data_loader": {"dataset": dataset}})
        preview = await services.submissions.preview(ACME, document)
        assert preview.dataset is not None
        assert preview.dataset.images == 1
        [image] = await services.uploads.images(ACME, upload.id)
        assert image.caption == "a cat"
        assert upload.id not in {it.id for it in await services.uploads.all(ZOO)}
        await services.uploads.delete(OPERATOR, upload.id)
        assert await services.uploads.all(ACME) == ()
        with pytest.raises(ForbiddenError):
            await services.uploads.create(ACME, "images.zip", 10, "zoo")

    run(served, use)


def test_a_page_follows_only_its_own_jobs(console: Console, served: Served) -> None:
    async def use(services: Services) -> None:
        view = await services.submissions.submit(ACME, job())
        with pytest.raises(UnknownJobError):
            await services.events.follow(ZOO, view.id).__aenter__()
        await services.jobs.cancel(ACME, view.id)
        for caller in (ACME, OPERATOR):
            async with services.events.follow(caller, view.id) as stream:
                batches = [batch async for batch in stream]
            kinds = [event.event.kind for batch in batches for event in batch]
            assert kinds == ["accepted", "ended"]

    run(served, use)


def test_more_jobs_are_followed_than_a_pool_has_connections(
    console: Console, served: Served
) -> None:
    async def use(services: Services) -> None:
        async with AsyncExitStack() as opened:
            for number in range(120):
                view = await services.submissions.submit(ACME, job(name=f"job-{number}"))
                follow = services.events.follow(ACME, view.id)
                stream = await opened.enter_async_context(follow)
                assert await stream.wait()

    run(served, use)


def test_a_stream_is_not_opened_without_its_events(
    console: Console, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(*_: object, **__: object) -> None:
        raise ConnectionError("the broker is away")

    async def use(services: Services) -> None:
        view = await services.submissions.submit(ACME, job())
        monkeypatch.setattr(Redis, "xread", refuse)
        with pytest.raises(NoBrokerError, match="the broker is away"):
            await services.events.follow(ACME, view.id).__aenter__()
        assert not services.events._streams._held

    run(served, use)
