import asyncio
from pathlib import Path
from typing import Any

import pytest

from console.errors import TooManyError
from console.services.images import check_process, processes
from console.services.images.check_process import CheckRequest
from console.services.images.dataset_checks import DatasetChecks
from console.services.images.image_files import ImageFiles
from console.services.images.processes import Processes
from tasks.data import validation
from tasks.data.decoding.decoder_pool import decode_all
from tasks.data.read_policy import ReadPolicy
from tasks.jobs.job import parse_job
from tests.console.conftest import Served, image, job


def test_checks_of_one_account_leave_room_for_others(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    over, running = asyncio.Event(), []

    async def wait(_module: str, request: CheckRequest) -> dict[str, Any]:
        running.append(request.tenant)
        await over.wait()
        return {}

    monkeypatch.setattr(processes, "run_process", wait)

    async def use() -> None:
        started, folder = Processes(), served.settings.home_dir / "thumbnails"
        files = ImageFiles(served.settings, started, folder)
        checks = DatasetChecks(served.settings, started, files)

        def check(account: str) -> asyncio.Task[Any]:
            document = parse_job(job(tenant=account))
            return asyncio.create_task(checks.check(account, document, ReadPolicy()))

        pending = [check("acme") for _ in range(8)]
        finished = asyncio.as_completed(pending)
        for _ in range(3):
            with pytest.raises(TooManyError, match="5 dataset checks"):
                await next(finished)
        other = check("zoo")
        while "zoo" not in running:  # one check of acme runs, and four wait
            await asyncio.sleep(0.001)
        assert sorted(running) == ["acme", "zoo"]
        over.set()
        for check_of_acme in finished:
            await check_of_acme
        await other

    asyncio.run(asyncio.wait_for(use(), 30))


def test_only_new_images_of_a_working_copy_are_decoded(
    served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, decoded, sent = tmp_path / "draft", list[str](), list[CheckRequest]()

    def count_decoded(requests: Any, *, find: Any, **options: Any) -> Any:
        def find_counted(request: dict[str, Any]) -> Any:
            found = find(request)
            if found is None:
                decoded.append(Path(request["path"]).name)
            return found

        return decode_all(requests, find=find_counted, **options)

    async def keep(_module: str, request: CheckRequest) -> dict[str, Any]:
        sent.append(request)
        return {}

    monkeypatch.setattr(validation, "decode_all", count_decoded)
    monkeypatch.setattr(processes, "run_process", keep)
    folder.mkdir()
    for number in range(3):
        (folder / f"{number}.png").write_bytes(image("red", (64, 65 + number)))
        (folder / f"{number}.txt").write_text("a red one", "utf-8")
        started = Processes()
        files = ImageFiles(served.settings, started, tmp_path / "thumbnails")
        checks = DatasetChecks(served.settings, started, files)
        asyncio.run(checks.check_images("acme", "acme", folder))
        assert check_process._check(sent[-1])["report"]["images"] == number + 1
    assert decoded == ["0.png", "1.png", "2.png"]
    assert sorted(path.name for path in folder.iterdir()) == [
        name for number in range(3) for name in (f"{number}.png", f"{number}.txt")
    ]


def test_a_working_copy_that_is_removed_before_its_check_is_a_problem(
    served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = list[CheckRequest]()

    async def keep(_module: str, request: CheckRequest) -> dict[str, Any]:
        sent.append(request)
        return {}

    monkeypatch.setattr(processes, "run_process", keep)
    started = Processes()
    files = ImageFiles(served.settings, started, tmp_path / "thumbnails")
    checks = DatasetChecks(served.settings, started, files)
    asyncio.run(checks.check_images("acme", "acme", tmp_path / "removed"))
    [finding] = check_process._check(sent[0])["report"]["findings"]
    assert finding["severity"] == "error"
    assert finding["message"] == "its images were removed before they were checked"
