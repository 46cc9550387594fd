import asyncio
import dataclasses
from pathlib import Path

import pytest

from console.errors import ConflictError
from console.services.jobs.demo import Demo
from tasks.access.api_keys import Caller, Scope
from tasks.jobs.document import write_document
from tasks.settings.demo_folder import DemoFolder
from tests.console.conftest import PNG, Console, job, zipped

OPERATOR = Caller("operator", None)


@pytest.fixture
def folder(tmp_path: Path) -> DemoFolder:
    return DemoFolder(tmp_path)


@pytest.fixture
def demo(console: Console, folder: DemoFolder) -> Demo:
    return Demo(folder.path, console.services.uploads, console.services.submissions)


def test_a_demo_becomes_a_job_with_its_images_as_an_upload(
    console: Console, demo: Demo, folder: DemoFolder
) -> None:
    with pytest.raises(ConflictError, match="not prepared: run"):
        asyncio.run(demo.start(OPERATOR))
    folder.job.write_text(write_document(job(name="demo-lora")), "utf-8")
    with pytest.raises(ConflictError, match="not prepared"):
        asyncio.run(demo.start(OPERATOR))
    folder.archive.write_bytes(zipped({"1.png": PNG, "1.txt": b"a red square"}))
    record = console.state.get(asyncio.run(demo.start(OPERATOR)))
    assert record.job.name == "demo-lora"
    archive = record.job.model_dump()["training"]["data_loader"]["dataset"]["archive"]
    [image] = asyncio.run(
        console.services.uploads.images(OPERATOR, archive.removeprefix("upload:"))
    )
    assert image.caption == "a red square"


def test_a_demo_is_for_operators_who_may_start_jobs(console: Console, demo: Demo) -> None:
    assert demo.is_offered_to(OPERATOR)
    others = (
        Caller("acme", "acme"),
        dataclasses.replace(OPERATOR, scopes=frozenset({Scope.JOBS_READ})),
        dataclasses.replace(OPERATOR, scopes=frozenset({Scope.JOBS_READ, Scope.JOBS_WRITE})),
    )
    for caller in others:
        assert not demo.is_offered_to(caller)
        with pytest.raises(ConflictError, match="offers no demo"):
            asyncio.run(demo.start(caller))


def test_a_console_without_a_folder_offers_none(console: Console) -> None:
    assert not console.services.demo.is_offered_to(OPERATOR)


def test_a_damaged_job_of_a_demo_is_reported(demo: Demo, folder: DemoFolder) -> None:
    folder.job.write_text("training: [", "utf-8")
    folder.archive.touch()
    with pytest.raises(ConflictError, match="line 1"):
        asyncio.run(demo.start(OPERATOR))
