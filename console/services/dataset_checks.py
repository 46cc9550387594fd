"""Looks into datasets, each in a process of its own, a few at a time."""

import asyncio
import json
import logging
import os
import shutil
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from anyio import CancelScope, to_thread

from console.errors import NotFoundError, TooManyError
from console.services.dataset_check_process import CheckRequest
from console.views import DatasetView, ErrorView, ImageView
from tasks.data.read_policy import ReadPolicy
from tasks.errors import JobError
from tasks.jobs.job import TrainingJob
from tasks.settings.settings import Settings

logger = logging.getLogger(__name__)

_AT_A_TIME = 2
# At work or waiting: nobody should have to wait for all of another tenant's.
_MOST, _MOST_OF_A_TENANT = 20, 5
WITHIN_S = 300.0
"""How long one may take."""
COMMAND = (sys.executable, "-P", "-m", "console.services.dataset_check_process")
"""The process."""
_TOO_LONG = "looking into the dataset takes too long; submit the job instead"


class Checked:
    """What was found in a dataset.

    Attributes:
        report: All of it; None where it could not be looked into.
        sizes: How many images are of each training size.
        error: Why a job would fail.
    """

    def __init__(self, answer: dict[str, Any]) -> None:
        report = answer.get("report")
        self.report = None if report is None else DatasetView.model_validate(report)
        self.sizes: Sequence[int] | None = answer.get("sizes")
        self.error = ErrorView.model_validate(answer["error"]) if "error" in answer else None


class Checks:
    """Starts the processes.

    Args:
        settings: Tell what may be read.
        thumbnails: Where thumbnails are kept.
    """

    def __init__(self, settings: Settings, thumbnails: Path) -> None:
        self._settings, self._thumbnails = settings, thumbnails
        self._room = asyncio.Semaphore(_AT_A_TIME)
        self._waiting: Counter[str] = Counter()
        # One at a time of each tenant, or one with slow servers would keep all others waiting.
        self._turns: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def check(self, job: TrainingJob, access: ReadPolicy) -> Checked:
        """Check a job's dataset and base model.

        Raises:
            TooManyError: Too many others are checked.
        """
        training = job.training.model_dump(mode="json")
        return Checked(await self._ask(job.tenant, access, kind="check", training=training))

    async def images(self, tenant: str, upload_id: str) -> tuple[ImageView, ...]:
        """The images of a whole upload, their thumbnails made.

        Raises:
            TooManyError: Too many others are looked into.
            JobError: It cannot be read as an archive.
        """
        folder = self._thumbnails / tenant / upload_id
        listed = folder / "images.json"
        if not listed.exists():
            access = ReadPolicy(most_bytes=self._settings.data_max_bytes)
            answer = await self._ask(
                tenant,
                access,
                kind="thumbnails",
                upload=f"upload:{upload_id}",
                folder=str(folder),
            )
            if "error" in answer:
                raise JobError(**answer["error"])
            await to_thread.run_sync(listed.write_text, json.dumps(answer["images"]))
        found = json.loads(await to_thread.run_sync(listed.read_bytes))
        return tuple(ImageView.model_validate(it) for it in found)

    def thumbnail(self, tenant: str, upload_id: str, number: int) -> bytes:
        """A thumbnail, as JPEG.

        Raises:
            NotFoundError: There is none, or it was not made yet.
        """
        try:
            return (self._thumbnails / tenant / upload_id / f"{number}.jpg").read_bytes()
        except OSError as error:
            raise NotFoundError("there is no such image") from error

    def forget(self, tenant: str, upload_id: str) -> None:
        """Remove an upload's thumbnails."""
        shutil.rmtree(self._thumbnails / tenant / upload_id, ignore_errors=True)

    async def _ask(self, tenant: str, access: ReadPolicy, **request: Any) -> dict[str, Any]:
        if self._waiting[tenant] >= _MOST_OF_A_TENANT or self._waiting.total() >= _MOST:
            raise TooManyError("too many datasets are looked into", 30)
        self._waiting[tenant] += 1
        try:
            async with self._turns[tenant], self._room:
                scratch = await to_thread.run_sync(self._new_scratch)
                try:
                    return await _answer(self._request(tenant, access, scratch, **request))
                finally:
                    # It may hold a whole unpacked archive.
                    with CancelScope(shield=True):
                        await to_thread.run_sync(shutil.rmtree, scratch, True)
        finally:
            self._waiting[tenant] -= 1

    def _new_scratch(self) -> str:
        folder = self._settings.resolved_scratch_dir / "console"
        folder.mkdir(parents=True, exist_ok=True)
        return tempfile.mkdtemp(dir=folder)

    def _request(self, tenant: str, access: ReadPolicy, scratch: str, **more: Any) -> CheckRequest:
        return CheckRequest(
            tenant=tenant,
            store_url=self._settings.resolved_store_url,
            downloads_dir=str(self._settings.downloads_dir),
            scratch_dir=scratch,
            roots=access.roots,
            hosts=tuple(sorted(access.hosts)),
            most_bytes=access.most_bytes,
            **more,
        )


async def _answer(request: CheckRequest) -> dict[str, Any]:
    process = await asyncio.create_subprocess_exec(
        *COMMAND,
        # The broker's password is none of its business.
        env={name: it for name, it in os.environ.items() if not name.startswith("TRAINING_")},
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        asked = request.model_dump_json().encode()
        out, _ = await asyncio.wait_for(process.communicate(asked), WITHIN_S)
    except TimeoutError:
        return _failed(_TOO_LONG)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode != 0:
        logger.error("looking into a dataset ended with %s", process.returncode)
        return _failed("the dataset cannot be looked into; the console's log tells why")
    answer: dict[str, Any] = json.loads(out)
    return answer


def _failed(message: str) -> dict[str, Any]:
    return {"error": {"code": "internal", "stage": "prepare", "message": message}}
