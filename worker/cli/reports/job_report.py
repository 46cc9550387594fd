"""Reports on one job: where it is, how long it may take, and whether it would run."""

from collections.abc import Collection
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import redis

from routing.classes import GIB
from tasks.client import Client
from tasks.errors import (
    EXIT_CODES,
    BaseModelError,
    DatasetError,
    InvalidJobError,
    JobError,
    NoBrokerError,
    Problem,
)
from tasks.eta.estimate import NO_RUN, TAKES_LONGER, Forecast, forecast, progress_of, time_left
from tasks.jobs.job import TrainingJob
from tasks.settings.settings import Settings
from tasks.state.record import GpuUse, JobRecord
from tasks.tracing.spans import has_endpoint, trace_id
from worker.cli.client import client_of
from worker.cli.reports.job_tables import dataset_table, estimate_table, route_table, stage_table
from worker.cli.reports.output import (
    counted,
    duration_text,
    error_document,
    print_error,
    print_json,
    print_warning,
    stdout,
)

ONLY_EMULATED = (
    "all live GPUs of this class are emulated on CPUs, which suits tiny models: "
    "a real one takes days"
)


class JobStatusReport:
    """Where a job is, what it waits for, and when it may end.

    Args:
        client: The fleet.
        job_id: The job.

    Raises:
        UnknownJobError: There is no such job.
    """

    def __init__(self, client: Client, job_id: str) -> None:
        self._record = client.state.get(job_id)
        self._position = client.positions.of(self._record)
        self._waiting_reason = client.waiting_reason(self._record, self._position)
        self._now = datetime.now(UTC)
        progress = progress_of(event for _, event in client.state.events(job_id))
        history = client.run_history.read()
        self._left = time_left(self._record, history, self._now, progress)
        self._trace_id = f"{trace_id(job_id):032x}"

    def document(self) -> dict[str, Any]:
        """Return the report as JSON."""
        return {
            **self._record.model_dump(mode="json"),
            "waiting_reason": self._waiting_reason,
            "position": self._position
            and {
                "place": self._position.place,
                "jobs_before": self._position.jobs_before,
                "starts_at": self._position.starts_at and self._position.starts_at.isoformat(),
                "unknown": self._position.unknown,
            },
            "trace_id": self._trace_id,
            "gpu_memory": {
                "estimated_bytes": self._record.estimate.needed_bytes,
                "peak_bytes": self._record.peak_memory_bytes,
                "checkpointed_blocks": self._record.checkpointed_blocks,
            },
            "expected": None if self._left is None else self._left.document(),
        }

    def show(self) -> None:
        """Print the report for people."""
        record = self._record
        stdout.print(stage_table(record))
        stdout.print(f"status: {record.status}")
        stdout.print(f"GPU memory: {_memory(record)}")
        if record.gpu_use.seconds:
            stdout.print(f"GPU time: {gpu_use_text(record.gpu_use)}")
        if record.labels:
            labels = ", ".join(f"{name}={value}" for name, value in record.labels.items())
            stdout.print(f"labels: {labels}", soft_wrap=True)
        if self._waiting_reason:
            stdout.print(f"waits: {self._waiting_reason}", soft_wrap=True)
        if self._left is not None:
            left = time_left_text(self._left, self._now)
            stdout.print(f"time left: {left}", soft_wrap=True)
        if has_endpoint():
            stdout.print(f"trace: {self._trace_id}")
        if record.error:
            error = f"{record.error_code} in {record.error_stage}: {record.error}"
            stdout.print(error)
        if record.result:
            show_published(record)


class JobEstimate:
    """What a fleet, if one is reachable, knows of a job that is not submitted.

    That is how long it may take, and ``problems`` for which the fleet would refuse it.

    Args:
        settings: Name the fleet.
        job: The job.
        sizes: Number of images of each training size; None if the dataset was not read.
    """

    def __init__(
        self, settings: Settings, job: TrainingJob, sizes: Collection[int] | None = None
    ) -> None:
        self._forecast: Forecast | None = None
        self._is_emulated: bool | None = None
        self._unavailable_reason = ""
        self.problems: list[Problem] = []
        try:
            client = client_of(settings)
            history = client.run_history.read()
            self.problems = client.state.webhook_problems(job)
        except (NoBrokerError, redis.ConnectionError, redis.TimeoutError) as error:
            self._unavailable_reason = str(error)
        else:
            route = job.route(settings.constants)
            self._is_emulated = route.memory_class in history.emulated
            self._forecast = forecast(job.training, route.gpu_queue, history, sizes)

    def document(self) -> dict[str, Any]:
        """Return it as JSON; without a fleet, ``expected`` is null and a reason is given."""
        if self._forecast is None:
            reason = self._unavailable_reason
            return {"expected": None, "emulated": None, "unavailable_reason": reason}
        return {"expected": self._forecast.document(), "emulated": self._is_emulated}

    def show(self) -> None:
        """Print it for people."""
        if self._is_emulated:
            stdout.print(ONLY_EMULATED, soft_wrap=True)
        if self._forecast is None:
            message = f"no duration estimate: {self._unavailable_reason}"
            stdout.print(message, soft_wrap=True)
        elif self._forecast.at_least_s == 0:
            stdout.print(f"no duration estimate: {NO_RUN}")
        else:
            stdout.print(estimate_table(self._forecast))


def show_dry_run(settings: Settings, job: TrainingJob, *, json: bool) -> int:
    """Check a job and its dataset from this machine, and print the result.

    Returns:
        The exit code.
    """
    from tasks.base_models.check import check_base_model
    from tasks.base_models.noise_schedule import noise_notes
    from tasks.data.sources import Sources
    from tasks.data.stored_datasets import with_uploads
    from tasks.data.uploads import StoredUploads
    from tasks.data.validation import check_dataset
    from tasks.store import Store

    job = with_uploads(job, lambda: Store(settings.resolved_store_url))
    route = job.route(settings.constants)
    with TemporaryDirectory() as scratch:
        uploads = StoredUploads(Store(settings.resolved_store_url), job.tenant)
        sources = Sources(
            settings.data_access(), settings.downloads_dir, Path(scratch), uploads=uploads
        )
        # Both always run: the user gets all problems at once.
        model_problems = check_base_model(job.training)
        report = check_dataset(job.training, sources)
    report.warnings[:0] = noise_notes(job.training)
    warnings = job.warnings()
    estimate = JobEstimate(settings, job, report.buckets.values())
    error: JobError | None = None
    if estimate.problems:
        error = InvalidJobError(estimate.problems)
    elif model_problems:
        error = BaseModelError(model_problems, "prepare")
    elif report.problems:
        error = DatasetError(report.problems, "prepare")
    code = EXIT_CODES[error.code] if error else 0
    if json:
        document = {
            "job": job.model_dump(mode="json"),
            "route": route.document(),
            **estimate.document(),
        }
        failed = {"error": error_document(error)} if error else {}
        print_json({**document, "warnings": warnings, "dataset": report.document(), **failed})
        return code
    stdout.print(route_table(route))
    stdout.print(dataset_table(report))
    for warning in warnings:
        print_warning(warning)
    for problems in (InvalidJobError(estimate.problems), BaseModelError(model_problems, "prepare")):
        if problems.problems:
            print_error(problems.message)
    if report.problems:
        count = len(report.problems)
        print_error(f"the dataset has {counted(count, 'problem')}; see the table above")
    if not error:
        estimate.show()
        stdout.print("the job can run; nothing was sent")
    return code


def published_of(record: JobRecord) -> str:
    """Return the path or address of a job's file."""
    return str((record.result or {})["published"])


def show_published(record: JobRecord) -> None:
    """Print where a job's results are."""
    stdout.print(f"published: {published_of(record)}", soft_wrap=True)


def time_left_text(left: Forecast, now: datetime) -> str:
    """Return the time left of a job in one line."""
    current = left.stages[0]
    if left.total_s is None:
        why = f"; {current.stage} {current.unknown}" if current.unknown == TAKES_LONGER else ""
        unknown = ", ".join(left.unknown)
        return f"at least {duration_text(left.at_least_s)}; unknown: {unknown}{why}"
    if current.wait_s:
        first = f"{duration_text(current.wait_s)} until {current.stage} starts"
    else:
        first = f"{duration_text(current.seconds or 0.0)} of {current.stage}"
    end = (now + timedelta(seconds=left.total_s)).astimezone()
    return f"{first}, {duration_text(left.total_s)} in total, until {end:%m-%d %H:%M}"


def gpu_use_text(use: GpuUse) -> str:
    """Return the GPU time of a job by class, and its cost."""
    seconds = ", ".join(f"{duration_text(s)} of {name}" for name, s in use.seconds.items())
    if use.cost is None:
        return seconds
    return f"{seconds}; cost {use.cost:.2f} {use.currency or ''}".rstrip()


def _memory(record: JobRecord) -> str:
    parts = [f"{record.estimate.needed_gib:.1f} GiB estimated"]
    peak = record.peak_memory_bytes
    if peak is not None:
        parts.append(f"{peak / GIB:.1f} GiB at its peak")
    parts.append(f"{record.checkpointed_blocks} of {record.training.blocks} blocks recomputed")
    return ", ".join(parts)
