import asyncio
from typing import Any

import pytest

from console.errors import TooManyError
from console.services import processes
from console.services.dataset_checks import CheckRequest, DatasetChecks
from console.services.image_files import ImageFiles
from console.services.processes import Processes
from tasks.data.read_policy import ReadPolicy
from tasks.jobs.job import parse_job
from tests.console.conftest import Served, job


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
