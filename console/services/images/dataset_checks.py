"""Dataset checks, each in a process of its own; see ``console.services.processes``."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from console.services.images.image_files import ImageFiles
from console.services.images.processes import DECODERS, Processes, answer, error_reply
from console.views import DatasetView, ErrorView
from tasks.base_models.check import check_base_model
from tasks.base_models.noise_schedule import noise_notes
from tasks.data.read_policy import ReadPolicy
from tasks.data.sources import Sources
from tasks.data.tokens import token_limits
from tasks.data.uploads import StoredUploads
from tasks.data.validation import check_dataset
from tasks.errors import BaseModelError, DatasetError
from tasks.jobs.job import TrainingConfig, TrainingJob, parse_job
from tasks.jobs.presets import preset_names
from tasks.settings.settings import Settings
from tasks.store import Store
from tasks.strict_model import StrictModel

_MODULE = "console.services.images.dataset_checks"
WORKING_COPY = f"upload:{0:032x}"
"""The archive of a job whose images are loose files in a folder of the console."""
# What a saved dataset is checked for: 768 px in buckets.
_PRESET = preset_names()[0]
# The locations of findings about a job's batches and lengths.
_OF_JOBS = ("training", WORKING_COPY)

_CONFIG: TypeAdapter[TrainingConfig] = TypeAdapter(TrainingConfig)


def results_of(working_copy: Path) -> Path:
    """Return the folder of the results of a working copy's checks, beside it."""
    return working_copy.with_name(f"{working_copy.name}.checks")


class CheckRequest(StrictModel):
    """Request to the process."""

    training: dict[str, Any]
    """The training part of a job, resolved."""
    images_only: bool = False
    """Whether only what is true of the images in any job is reported."""
    working_copy: str = ""
    """The folder of ``WORKING_COPY``."""
    results: str = ""
    """The folder of the results of its earlier checks: only new images are decoded."""
    tenant: str
    store_url: str
    downloads_dir: str
    scratch_dir: str
    roots: tuple[str, ...] | None
    """Folders that datasets may be in; null for any."""
    hosts: tuple[str, ...]
    max_bytes: int


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
            return CheckedDataset(await self._processes.request(account, _MODULE, request))


def main() -> None:
    """Answer one request, in the process."""
    answer(CheckRequest, _check)


def _check(request: CheckRequest) -> dict[str, Any]:
    policy = ReadPolicy(request.roots, frozenset(request.hosts), request.max_bytes)
    uploads = StoredUploads(Store(request.store_url), request.tenant)
    scratch = Path(request.scratch_dir)
    folders = {WORKING_COPY: Path(request.working_copy)} if request.working_copy else {}
    sources = Sources(
        policy, Path(request.downloads_dir), scratch, uploads=uploads, loose_archives=folders
    )
    config = _CONFIG.validate_python(request.training)
    # Both always run: the caller gets all problems at once.
    model_problems = [] if request.images_only else check_base_model(config)
    limits = (lambda _: []) if request.images_only else token_limits
    known = Store(Path(request.results).as_uri()) if request.results else None
    report = check_dataset(config, sources, decoders=DECODERS, limits=limits, store=known)
    if request.images_only:
        report.warnings = [it for it in report.warnings if it.location not in _OF_JOBS]
    else:
        report.warnings[:0] = noise_notes(config)
    about: dict[str, Any] = {}
    if request.working_copy:
        about["lacks_captions"] = any(problem.missing for problem in report.problems)
        about["faults"] = {
            name: (severity, problem.message)
            for name, (severity, problem) in report.by_file.items()
        }
        report.problems = [problem for problem in report.problems if not problem.missing]
    reply = about | {"report": report.document(), "sizes": list(report.buckets.values())}
    if model_problems:
        return {**reply, **error_reply(BaseModelError(model_problems, "prepare"))}
    if report.problems:
        return reply | error_reply(DatasetError(report.problems, "prepare"))
    return reply


if __name__ == "__main__":
    main()
