"""What the console's pages and its API do for an account: one place that decides who sees what.

A job or an upload of another tenant is told of in the very words of one that is not there.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection, Iterable, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any, TypeVar

from anyio import to_thread

from console.errors import ConflictError, ForbiddenError, TooManyError
from console.services.archive import NewFile, write_archive
from console.services.dataset_checks import Checked, Checks
from console.services.event_hub import EventHub
from console.services.fleet import FleetViews
from console.services.job_files import JobFiles, OpenFile
from console.services.jobs import JobViews, matching
from console.services.sessions import Sessions
from console.services.submissions import Submissions
from console.services.uploads import Checksum, Uploads
from console.views import (
    FilesView,
    FleetView,
    ImageView,
    JobEvent,
    JobPage,
    JobView,
    PresetView,
    Preview,
    Sample,
    UploadView,
)
from tasks.api_keys import ApiKeys, Caller
from tasks.client import Client
from tasks.errors import JobError
from tasks.jobs.job import TrainingJob
from tasks.settings.settings import Settings
from tasks.store import Store
from tasks.tracing.spans import start_tracing

logger = logging.getLogger(__name__)

DownloadResponse = TypeVar("DownloadResponse")

_UPKEEP_EVERY_S = 3600.0
# Each holds a socket.
_MOST_STREAMS = 500
_DEFAULT_TENANT: str = TrainingJob.model_fields["tenant"].default


class Service:
    """All that an account can do.

    Args:
        settings: The console's.
        broker_url: The fleet's broker.

    Raises:
        NoBrokerError: It does not answer.
    """

    def __init__(self, settings: Settings, broker_url: str) -> None:
        self.settings = settings
        self._tracing = start_tracing("console")
        self._client = Client(settings, broker_url, self._tracing.tracer)
        store = Store(settings.resolved_store_url)
        home = settings.home_dir / "console"
        self.accounts = ApiKeys(settings.api_keys_file)
        self.sessions = Sessions(self.accounts)
        self._jobs = JobViews(self._client)
        self._submissions = Submissions(self._client, settings, self._jobs)
        self._fleet = FleetViews(self._client, settings, self._jobs)
        self._files = JobFiles(store)
        self._uploads = Uploads(
            home / "uploads", store, settings.upload_max_bytes, settings.job_ttl
        )
        self._home = home
        self._checks = Checks(settings, home / "thumbnails")
        self._streams = EventHub(broker_url)
        self._followed: Counter[Caller] = Counter()

    # Jobs

    async def submit(
        self, account: Caller, document: Any, *, idempotency_key: str | None = None
    ) -> JobView:
        """Submit a job; the same one twice is one job.

        Args:
            account: Who submits it.
            document: The job. A tenant's key submits as its tenant.
            idempotency_key: Stands for the job where it has no id: the same key is the same job.

        Raises:
            InvalidJobError: It cannot run, with every fault.
            DoesNotFitJobError: No GPU memory class holds it.
            BadRequestError: The key is none.
        """
        return await _in_thread(self._submissions.submit, account, document, idempotency_key)

    async def preview(
        self,
        account: Caller,
        document: Any,
        *,
        check_dataset: bool = True,
        sizes: Collection[int] | None = None,
    ) -> Preview:
        """What would become of a job; nothing is sent.

        Args:
            account: Who asks.
            document: The job.
            check_dataset: Whether to read its dataset and base model, from this machine.
            sizes: How many images are of each training size, where that is known already.

        Raises:
            InvalidJobError: It cannot run as described, with every fault.
            DoesNotFitJobError: No GPU memory class holds it.
            TooManyError: Too many datasets are looked into.
        """
        job = await _in_thread(self._submissions.checked, account, document)
        found: Checked | None = None
        if check_dataset:
            found = await self._checks.check(job, self._submissions.access(account))
        return await _in_thread(self._submissions.preview, account, job, found, sizes)

    async def job(self, account: Caller, job_id: str) -> JobView:
        """A job.

        Raises:
            UnknownJobError: There is none of this id, for this account.
        """
        return await _in_thread(
            lambda: self._jobs.view(self._jobs.record(account, job_id), account)
        )

    async def description(self, account: Caller, job_id: str) -> TrainingJob:
        """What a job was submitted as, with its preset's values and all defaults.

        Raises:
            UnknownJobError: There is none of this id, for this account.
        """
        return await _in_thread(lambda: self._jobs.record(account, job_id).job)

    async def jobs(
        self,
        account: Caller,
        *,
        search: str | None = None,
        status: str | None = None,
        limit: int = 50,
        cursor: str | None = None,
        tenant: str | None = None,
    ) -> JobPage:
        """Some of the jobs, newest first.

        Args:
            account: Who asks: a tenant is shown its own.
            search: Only those with this in their id or name.
            status: Only those of this status.
            limit: How many; fewer may come although there are more.
            cursor: ``next`` of the page before.
            tenant: Only this tenant's; operators may ask for any.

        Raises:
            BadRequestError: The cursor is none.
            ForbiddenError: The tenant is another's.
        """
        if tenant is not None and not account.sees(tenant):
            raise ForbiddenError("this key shows the jobs of its own tenant only")
        matches = matching(search, status)
        return await _in_thread(
            self._jobs.page, account, account.tenant or tenant, matches, limit, cursor
        )

    async def cancel(self, account: Caller, job_id: str, *, save: bool = False) -> JobView:
        """Cancel a job.

        Raises:
            UnknownJobError: There is none of this id, for this account.
        """
        return await self._change(account, job_id, lambda it: self._client.cancel(it, save=save))

    async def pause(self, account: Caller, job_id: str) -> JobView:
        """Keep a job from going on.

        Raises:
            UnknownJobError: There is none of this id, for this account.
            NotNowError: It is over, or being cancelled.
        """
        return await self._change(account, job_id, self._client.control.pause)

    async def resume(self, account: Caller, job_id: str) -> JobView:
        """Let a paused job go on.

        Raises:
            UnknownJobError: There is none of this id, for this account.
            NotNowError: It is not paused.
        """
        return await self._change(account, job_id, self._client.resume)

    async def events(
        self, account: Caller, job_id: str, after: str = "0"
    ) -> AsyncGenerator[JobEvent, None]:
        """A job's events, those that are there first; ends when the job has.

        Args:
            account: Who asks.
            job_id: The job.
            after: The id of an event: those after it.

        Raises:
            UnknownJobError: There is none of this id, for this account.
            BadRequestError: ``after`` is no event's id.
            NoBrokerError: The broker went away.
        """
        async with aclosing(self.event_batches(account, job_id, after)) as batches:
            async for batch in batches:
                for event in batch:
                    yield event

    async def event_batches(
        self, account: Caller, job_id: str, after: str = "0", patience_s: float = 15.0
    ) -> AsyncGenerator[Sequence[JobEvent], None]:
        """The same in batches; an empty one where nothing has happened for ``patience_s``."""
        record = await _in_thread(self._jobs.record, account, job_id)
        self.check_streams(account)
        self._followed[account] += 1
        try:
            async with aclosing(self._streams.follow(record.id, after, patience_s)) as batches:
                async for batch in batches:
                    yield batch
        finally:
            self._followed[account] -= 1

    def check_streams(self, account: Caller) -> None:
        """Refuse one more stream where an account has too many.

        Raises:
            TooManyError: It has.
        """
        if self._followed[account] >= _MOST_STREAMS:
            raise TooManyError(f"{_MOST_STREAMS} streams are open for this key", 10)

    # What jobs leave

    async def files(self, account: Caller, job_id: str) -> FilesView:
        """What a job has published.

        Raises:
            UnknownJobError: There is none of this id, for this account.
        """
        return await _in_thread(lambda: self._files.published(self._jobs.record(account, job_id)))

    async def open_file(self, account: Caller, job_id: str, name: str) -> OpenFile:
        """A published file.

        Raises:
            UnknownJobError: There is none of this id, for this account.
            NotFoundError: The job has published none of this name.
        """
        return await _in_thread(lambda: self._files.open(self._jobs.record(account, job_id), name))

    async def samples(self, account: Caller, job_id: str) -> tuple[Sample, ...]:
        """A job's validation images so far.

        Raises:
            UnknownJobError: There is none of this id, for this account.
        """
        return await _in_thread(lambda: self._files.samples(self._jobs.record(account, job_id)))

    async def open_sample(self, account: Caller, job_id: str, name: str) -> OpenFile:
        """A validation image, a PNG.

        Raises:
            UnknownJobError: There is none of this id, for this account.
            NotFoundError: The job has none of this name.
        """
        return await _in_thread(
            lambda: self._files.open_sample(self._jobs.record(account, job_id), name)
        )

    # Uploads

    async def create_upload(
        self, account: Caller, name: str, length: int, tenant: str | None = None
    ) -> UploadView:
        """Begin an upload; it is written in pieces.

        Args:
            account: Who uploads.
            name: What it is called.
            length: Its bytes.
            tenant: Whose jobs may name it; an operator's own choice.

        Raises:
            TooLargeError: It would take more than is allowed.
            TooManyError: Too many are not finished.
            ForbiddenError: The tenant is another's.
        """
        return await _in_thread(self._uploads.create, _tenant_of(account, tenant), name, length)

    async def write_upload(
        self,
        account: Caller,
        upload_id: str,
        offset: int,
        pieces: AsyncIterator[bytes],
        checksum: Checksum | None = None,
        coming: int | None = None,
    ) -> UploadView:
        """Go on with an upload; what came is kept, however this ends.

        Args:
            account: Who writes.
            upload_id: The upload.
            offset: How many bytes the sender believes to be here.
            pieces: What follows.
            checksum: That of all that follows now.
            coming: How many bytes that is, where the sender says so before.

        Raises:
            NotFoundError: There is none of this id, for this account.
            ConflictError: Other bytes are here than ``offset`` says, or another request writes.
            TooLargeError: More came than was said.
            ChecksumError: Other bytes came than were sent.
        """
        tenant = await _in_thread(self._uploads_tenant, account, upload_id)
        return await self._uploads.write(tenant, upload_id, offset, pieces, checksum, coming)

    async def upload(self, account: Caller, upload_id: str) -> UploadView:
        """An upload.

        Raises:
            NotFoundError: There is none of this id, for this account.
        """
        tenant = await _in_thread(self._uploads_tenant, account, upload_id)
        return await self._uploads.finished(tenant, upload_id)

    async def uploads(self, account: Caller) -> tuple[UploadView, ...]:
        """An account's uploads, the newest first; an operator's are those of all."""
        return await _in_thread(self._all_uploads, account)

    async def delete_upload(self, account: Caller, upload_id: str) -> None:
        """Remove an upload. Jobs whose ``prepare`` stage is done do not need it any more.

        Raises:
            NotFoundError: There is none of this id, for this account.
            ConflictError: A request writes to it.
        """
        tenant = await _in_thread(self._uploads_tenant, account, upload_id)
        await _in_thread(self._uploads.delete, tenant, upload_id)
        await _in_thread(self._checks.forget, tenant, upload_id)

    async def upload_files(
        self,
        account: Caller,
        files: Iterable[NewFile],
        *,
        name: str = "images.zip",
        tenant: str | None = None,
    ) -> UploadView:
        """Make one upload of several images and captions.

        Args:
            account: Who uploads.
            files: The files; a text beside an image of the same name is its caption.
            name: What the upload is called.
            tenant: Whose jobs may name it; an operator's own choice.

        Raises:
            TooLargeError: They take more than is allowed.
            ForbiddenError: The tenant is another's.
        """
        whose = _tenant_of(account, tenant)
        folder = self._home / "packing"
        async with write_archive(folder, files, self._uploads.most_bytes) as path:
            return await _in_thread(self._uploads.put, whose, name, path)

    async def put_upload(self, account: Caller, name: str, path: Path) -> UploadView:
        """Take a whole file of this machine's as an upload, for the account's own jobs."""
        return await _in_thread(self._uploads.put, _tenant_of(account, None), name, path)

    async def images(self, account: Caller, upload_id: str) -> tuple[ImageView, ...]:
        """The images of an upload, with their captions.

        Raises:
            NotFoundError: There is none of this id, for this account.
            ConflictError: It is not whole.
            JobError: It is no archive.
            TooManyError: Too many others are looked into.
        """
        upload = await self.upload(account, upload_id)
        if not upload.whole:
            raise ConflictError("the upload is not whole yet")
        return await self._checks.images(upload.tenant, upload.id)

    async def thumbnail(self, account: Caller, upload_id: str, number: int) -> bytes:
        """An image of an upload, small, as JPEG; after ``images`` was asked.

        Raises:
            NotFoundError: There is none, for this account.
        """
        tenant = await _in_thread(self._uploads_tenant, account, upload_id)
        return await _in_thread(self._checks.thumbnail, tenant, upload_id, number)

    # The fleet

    async def fleet(self, account: Caller) -> FleetView:
        """The fleet as it is now."""
        return await _in_thread(self._fleet.fleet, account)

    async def presets(self, account: Caller) -> tuple[PresetView, ...]:
        """All presets; of each type, the one is marked that suits this fleet."""
        return await _in_thread(self._fleet.presets)

    def schema(self) -> dict[str, Any]:
        """The JSON schema of a job."""
        return TrainingJob.model_json_schema()

    # The console itself

    async def upkeep(self) -> None:
        """Once an hour, remove what nobody needs; ends when it is cancelled."""
        while True:
            try:
                await _in_thread(self._sweep)
            except (JobError, OSError):
                logger.warning("the upkeep of uploads waits", exc_info=True)
            await asyncio.sleep(_UPKEEP_EVERY_S)

    async def close(self) -> None:
        """Let go of the broker, and send the last spans."""
        await self._streams.close()
        await _in_thread(self._tracing.close)

    async def look_after(self) -> None:
        """Ask the broker something.

        Raises:
            redis.RedisError: It does not answer.
        """
        await _in_thread(self._client.tenant_queues.terms)

    def _sweep(self) -> None:
        for view in self._uploads.sweep():
            self._checks.forget(view.tenant, view.id)

    async def _change(
        self, account: Caller, job_id: str, change: Callable[[str], object]
    ) -> JobView:
        def changed() -> JobView:
            record = self._jobs.record(account, job_id)
            change(record.id)
            return self._jobs.view(self._client.state.get(record.id), account)

        return await _in_thread(changed)

    def _uploads_tenant(self, account: Caller, upload_id: str) -> str:
        """Whose upload this is, as far as the account may know."""
        if account.tenant is not None:
            return account.tenant
        for tenant in self._uploads.tenants():
            if any(it.id == upload_id for it in self._uploads.all(tenant)):
                return tenant
        return _DEFAULT_TENANT

    def _all_uploads(self, account: Caller) -> tuple[UploadView, ...]:
        tenants = [account.tenant] if account.tenant else self._uploads.tenants()
        found = [it for tenant in tenants for it in self._uploads.all(tenant)]
        return tuple(sorted(found, key=lambda it: it.created, reverse=True))


async def _in_thread(
    function: Callable[..., DownloadResponse], *arguments: Any
) -> DownloadResponse:
    return await to_thread.run_sync(function, *arguments)


def _tenant_of(account: Caller, tenant: str | None) -> str:
    """Whose something is that an account makes."""
    if account.tenant is None:
        return tenant or _DEFAULT_TENANT
    if tenant not in (None, account.tenant):
        raise ForbiddenError("this key uploads for its own tenant only")
    return account.tenant
