"""The process that checks a dataset and a base model."""

from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from console.services.images.processes import DECODERS, answer, error_reply
from tasks.base_models.check import check_base_model
from tasks.base_models.noise_schedule import noise_notes
from tasks.data.read_policy import ReadPolicy
from tasks.data.sources import Sources
from tasks.data.tokens import token_limits
from tasks.data.uploads import StoredUploads
from tasks.data.validation import check_dataset
from tasks.errors import BaseModelError, DatasetError
from tasks.jobs.job import TrainingConfig
from tasks.store import Store
from tasks.strict_model import StrictModel

CHECK_MODULE = "console.services.images.check_process"
"""This module, which ``Processes`` runs."""
WORKING_COPY = f"upload:{0:032x}"
"""The archive of a job whose images are loose files in a folder of the console."""
# The locations of findings about a job's batches and lengths.
_OF_JOBS = ("training", WORKING_COPY)

_CONFIG: TypeAdapter[TrainingConfig] = TypeAdapter(TrainingConfig)


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
