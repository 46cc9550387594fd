"""The services of the console, built once a process, and their maintenance."""

import asyncio
import logging
import time
from contextlib import suppress
from dataclasses import dataclass

from redis import Redis, RedisError

from console.errors import UnavailableError
from console.login import Sessions
from console.services.fleet import Fleet
from console.services.images.captioning import Captioning
from console.services.images.dataset_checks import DatasetChecks
from console.services.images.datasets import Datasets
from console.services.images.image_files import ImageFiles
from console.services.images.processes import Processes
from console.services.images.upload_store import UploadStore
from console.services.images.uploads import Uploads
from console.services.jobs.comparison import Comparisons
from console.services.jobs.demo import Demo
from console.services.jobs.event_hub import EventHub
from console.services.jobs.file_links import FileLinks
from console.services.jobs.job_files import JobFiles
from console.services.jobs.job_records import JobRecords
from console.services.jobs.jobs import Jobs
from console.services.jobs.submissions import Submissions
from console.services.jobs.webhooks import JobWebhooks
from console.services.rate_limiter import RateLimiter, WrongKeys
from console.services.shares import Share
from console.services.threads import in_thread
from tasks.access.api_keys import ApiKeys
from tasks.access.key_changes import KeyChanges
from tasks.client import Client
from tasks.errors import JobError
from tasks.settings.settings import Settings
from tasks.state.connection import connect
from tasks.store import Store
from tasks.tracing.spans import Tracing, start_tracing

logger = logging.getLogger(__name__)

_MAINTENANCE_INTERVAL_S = 3600.0
_SESSIONS_INTERVAL_S = 2.0
_DELETIONS_INTERVAL_S = 60.0
_KEYS_INTERVAL_S, _WARNING_INTERVAL_S = 60.0, 86_400.0
# Of all accounts. An open page keeps about a megabyte.
_MAX_PAGES = 400


@dataclass(frozen=True)
class Services:
    """Services that pages and API routes call. Each decides what a caller may see."""

    settings: Settings
    client: Client
    shared: Redis
    """The broker, with what all consoles share."""
    api_keys: ApiKeys
    sessions: Sessions
    api_limiter: RateLimiter
    link_limiter: RateLimiter
    wrong_keys: WrongKeys
    jobs: Jobs
    submissions: Submissions
    events: EventHub
    records: JobRecords
    comparisons: Comparisons
    files: JobFiles
    links: FileLinks
    uploads: Uploads
    captioning: Captioning
    image_files: ImageFiles
    demo: Demo
    datasets: Datasets
    fleet: Fleet
    webhooks: JobWebhooks
    open_pages: Share
    tracing: Tracing

    async def maintain(self) -> None:
        """Remove expired uploads once an hour, until cancelled."""
        while True:
            try:
                await self.uploads.remove_expired()
                await self.datasets.remove_deleted()
            except (JobError, OSError):
                logger.warning("cannot remove expired uploads; retrying later", exc_info=True)
            await asyncio.sleep(_MAINTENANCE_INTERVAL_S)

    async def maintain_deletions(self) -> None:
        """Remove the files of deleted jobs that remain, until cancelled.

        The elected worker does the same, where its rights on the store allow it.
        """
        while True:
            try:
                await self.records.remove_due()
            except (JobError, RedisError):
                logger.warning("cannot remove files of deleted jobs; retrying later", exc_info=True)
            await asyncio.sleep(_DELETIONS_INTERVAL_S)

    async def maintain_keys(self) -> None:
        """Take changes of API keys to the audit log, and warn of their end, until cancelled."""
        changes = KeyChanges(self.settings.api_keys_file)
        warned_at = -_WARNING_INTERVAL_S
        while True:
            try:
                await in_thread(changes.forward)(self.client.audit)
                if time.monotonic() - warned_at >= _WARNING_INTERVAL_S:
                    warned_at = time.monotonic()
                    _warn_of_expiry(self.api_keys)
            except (JobError, RedisError):
                logger.warning("cannot record changes of API keys; retrying later", exc_info=True)
            await asyncio.sleep(_KEYS_INTERVAL_S)

    async def maintain_sessions(self) -> None:
        """End open pages whose sessions ended in another console, until cancelled."""
        while True:
            await asyncio.sleep(_SESSIONS_INTERVAL_S)
            with suppress(UnavailableError):
                await in_thread(self.sessions.refresh)()

    async def close(self) -> None:
        """Close the connections to the broker, and send the last spans."""
        await self.events.close()
        await in_thread(self.tracing.close)()


def _warn_of_expiry(api_keys: ApiKeys) -> None:
    for entry in api_keys.entries():
        if entry.caller.expires_soon and not entry.is_expired:
            logger.warning("API key %s expires at %s", entry.name, entry.expires)


def open_services(settings: Settings, broker_url: str) -> Services:
    """Build the services.

    Args:
        settings: The console's settings.
        broker_url: The fleet's broker.

    Raises:
        NoBrokerError: The broker is unavailable.
    """
    tracing = start_tracing("console")
    client = Client(settings, broker_url, tracing.tracer)
    store = Store(settings.resolved_store_url)
    folder = settings.resolved_console_dir
    api_keys = ApiKeys(settings.api_keys_file)
    shared = connect(broker_url)
    jobs = Jobs(client)
    files = JobFiles(store, jobs)
    processes = Processes()
    image_files = ImageFiles(settings, processes, folder / "thumbnails")
    checks = DatasetChecks(settings, processes, image_files)
    uploads = Uploads(UploadStore(folder / "uploads", store, settings), image_files)
    submissions = Submissions(client, settings, jobs, checks)
    return Services(
        settings=settings,
        client=client,
        shared=shared,
        api_keys=api_keys,
        sessions=Sessions(shared, api_keys),
        api_limiter=RateLimiter(shared, "api", settings.api_rate_limit),
        # Downloads by links leave the requests of their key alone.
        link_limiter=RateLimiter(shared, "links", settings.api_rate_limit),
        wrong_keys=WrongKeys(shared),
        jobs=jobs,
        submissions=submissions,
        events=EventHub(broker_url, jobs),
        comparisons=Comparisons(client, jobs, files),
        records=JobRecords(client, shared, store, jobs),
        files=files,
        links=FileLinks(shared, api_keys, files, client.audit),
        uploads=uploads,
        captioning=Captioning(client, uploads, settings),
        image_files=image_files,
        demo=Demo(settings.demo_dir, uploads, submissions),
        datasets=Datasets(settings, store, uploads, image_files, checks, client.audit),
        fleet=Fleet(client, settings, jobs),
        webhooks=JobWebhooks(client, jobs),
        open_pages=Share("pages", _MAX_PAGES),
        tracing=tracing,
    )
