import asyncio
from collections.abc import AsyncIterator

import pytest

from console.errors import ForbiddenError
from console.services import sessions
from console.services.archive import NewFile
from console.services.service import Service
from console.services.sessions import Sessions
from tasks.api_keys import ApiKeys, Caller
from tasks.errors import UnknownJobError
from tests.console.conftest import PNG, Console, Served, job

ACME, ZOO, OPERATOR = Caller("a", "acme"), Caller("z", "zoo"), Caller("o", None)


def file(name: str, data: bytes) -> NewFile:
    async def pieces() -> AsyncIterator[bytes]:
        yield data

    return NewFile(name, pieces())


def own_service(served: Served) -> Service:
    """That of the served console belongs to its thread."""
    assert served.settings.broker_url is not None
    return Service(served.settings, served.settings.broker_url.get_secret_value())


def test_files_that_a_page_takes_become_one_dataset(console: Console, served: Served) -> None:
    async def take() -> None:
        service = own_service(served)
        files = [file("../cat.png", PNG), file("../cat.txt", b"a cat")]
        upload = await service.upload_files(ACME, files, name="four cats")
        assert (upload.name, upload.tenant, upload.whole) == ("four cats", "acme", True)
        dataset = {"type": "ARCHIVE", "archive": upload.source}
        document = job(training={"data_loader": {"dataset": dataset}})
        found = await service.preview(ACME, document)
        assert found.dataset is not None
        assert found.dataset.images == 1
        [image] = await service.images(ACME, upload.id)
        assert image.caption == "a cat"
        assert upload.id not in {it.id for it in await service.uploads(ZOO)}
        await service.delete_upload(OPERATOR, upload.id)
        assert await service.uploads(ACME) == ()
        with pytest.raises(ForbiddenError):
            await service.upload_files(ACME, files, tenant="zoo")
        await service.close()

    asyncio.run(take())


def test_a_page_follows_its_own_jobs_only(console: Console, served: Served) -> None:
    async def follow() -> None:
        service = own_service(served)
        view = await service.submit(ACME, job())
        with pytest.raises(UnknownJobError):
            await anext(service.events(ZOO, view.id))
        await service.cancel(ACME, view.id)
        for account in (ACME, OPERATOR):
            kinds = [it.event.kind async for it in service.events(account, view.id)]
            assert kinds == ["accepted", "ended"]
        await service.close()

    asyncio.run(follow())


def test_a_session_ends_by_itself(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    accounts = ApiKeys(served.settings.api_keys_file)
    monkeypatch.setattr(sessions, "LIFE_S", 3600)
    open_ones = Sessions(accounts)
    cookie = open_ones.begin(served.keys["acme"])
    assert open_ones.account(cookie) == Caller("acme", "acme")
    assert open_ones.account("another") is None
    monkeypatch.setattr(sessions, "LIFE_S", -1)
    assert open_ones.account(open_ones.begin(served.keys["acme"])) is None
    assert open_ones.begin("twk_wrong") is None
