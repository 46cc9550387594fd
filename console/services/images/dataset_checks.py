"""Dataset checks, each in a process of its own; see ``check_process``."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from console.services.images.check_process import CHECK_MODULE, WORKING_COPY, CheckRequest
from console.services.images.image_files import ImageFiles
from console.services.images.processes import Processes
from console.views import DatasetView, ErrorView
from tasks.data.read_policy import ReadPolicy
from tasks.jobs.job import TrainingJob, parse_job
from tasks.jobs.presets import preset_names
from tasks.settings.settings import Settings

# What a saved dataset is checked for: 768 px in buckets.
_PRESET = preset_names()[0]


def results_of(working_copy: Path) -> Path:
    """Return the folder of the results of a working copy's checks, beside it."""
    return working_copy.with_name(f"{working_copy.name}.checks")


class CheckedDataset:
    """Result of a check.

    Attributes:
        report: Report on the dataset; None when it could not be read.
        sizes: Images per training size.
        error: Why a job with this dataset would fail.
        faults: Severity and message of the worst finding about each file of a working copy.
        lacks_captions: Whether images of a working copy have no caption; the report leaves it out.
    """

    def __init__(self, reply: dict[str, Any]) -> None:
        report = reply.get("report")
        self.report = None if report is None else DatasetView.model_validate(report)
        self.sizes: Sequence[int] | None = reply.get("sizes")
        self.error = ErrorView.model_validate(reply["error"]) if "error" in reply else None
        faults = reply.get("faults", {}).items()
        self.faults = {name: (severity, message) for name, (severity, message) in faults}
        self.lacks_captions: bool = reply.get("lacks_captions", False)


class DatasetChecks:
    """Starts the processes.

    Args:
        settings: What may be read, and the folders to use.
        processes: Starts them.
        files: Makes their scratch folders.
    """

    def __init__(self, settings: Settings, processes: Processes, files: ImageFiles) -> None:
        self._settings, self._processes, self._files = settings, processes, files

    async def check(
        self,
        account: str,
        job: TrainingJob,
        policy: ReadPolicy,
        working_copy: Path | None = None,
    ) -> CheckedDataset:
        """Check a job's dataset and base model.

        Args:
            account: The account whose share it takes.
            job: The job.
            policy: What the dataset may be read from.
            working_copy: The folder of the images of an archive that is ``WORKING_COPY``.

        Raises:
            TooManyError: The account has used up its share of checks.
        """
        return await self._check(account, job, policy, working_copy)

    async def check_images(self, account: str, tenant: str, folder: Path) -> CheckedDataset:
        """Check images with captions for a job of 768 px, without a base model.

        Args:
            account: The account whose share it takes.
            tenant: The tenant of the images.
            folder: Their folder.

        Raises:
            TooManyError: The account has used up its share of checks.
        """
        dataset = {"type": "ARCHIVE", "archive": WORKING_COPY}
        loader = {"dataset": dataset}
        document = {"preset": _PRESET, "tenant": tenant, "training": {"data_loader": loader}}
        return await self._check(
            account, parse_job(document), ReadPolicy(roots=()), folder, images_only=True
        )

    async def _check(
        self,
        account: str,
        job: TrainingJob,
        policy: ReadPolicy,
        working_copy: Path | None,
        *,
        images_only: bool = False,
    ) -> CheckedDataset:
        async with self._files.scratch() as scratch:
            request = CheckRequest(
                images_only=images_only,
                training=job.training.model_dump(mode="json"),
                working_copy="" if working_copy is None else str(working_copy),
                results="" if working_copy is None else str(results_of(working_copy).resolve()),
                tenant=job.tenant,
                store_url=self._settings.resolved_store_url,
                downloads_dir=str(self._settings.downloads_dir),
                scratch_dir=str(scratch),
                roots=policy.roots,
                hosts=tuple(sorted(policy.hosts)),
                max_bytes=policy.max_bytes,
            )
            return CheckedDataset(await self._processes.request(account, CHECK_MODULE, request))
