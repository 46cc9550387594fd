"""Jobs, routes, datasets and durations as tables for people, and durations as JSON."""

from collections.abc import Mapping, Sequence
from itertools import groupby
from statistics import median
from typing import TYPE_CHECKING, Any

from rich.table import Table

from routing.policy import Route
from tasks.contract import STAGES
from tasks.eta.estimate import Basis, Forecast, StageForecast
from tasks.eta.history import UNITS, RunHistory, RunStatistics, WorkloadKey, p90
from tasks.state.record import JobRecord
from tasks.state.tenants.webhook_secrets import WebhookSecret
from tasks.state.webhook_deliveries import Delivery
from worker.cli.reports.output import FoldedTable, counted, duration_text

# Needs Pillow, which the core does not have.
if TYPE_CHECKING:
    from tasks.data.validation import Report

_PARTS = {
    "text_encoders": "text encoders",
    "adapters": "trained weights",
    "optimizer": "optimizer state",
    "activations": "activations, gradients",
}


def stage_table(record: JobRecord) -> Table:
    """Show a job's stages: queue, worker, seconds, result."""
    table = FoldedTable("stage", "queue", "worker", "seconds", "result", title=f"job {record.id}")
    unfinished = "stopped" if record.status.ended or record.pending_queue else "running"
    for name in STAGES:
        stage = record.stages.get(name)
        if stage is None:
            table.add_row(name, "", "", "", "")
            continue
        seconds = "" if stage.seconds is None else f"{stage.seconds:.1f}"
        table.add_row(name, stage.queue, stage.worker, seconds, stage.summary or unfinished)
    return table


def job_table(records: list[JobRecord], waits: Mapping[str, str | None] | None) -> Table:
    """Show one job per row.

    Args:
        records: The jobs.
        waits: What each of them waits for, by id, None if it runs or has ended; or None for no such
            column.
    """
    table = FoldedTable()
    for heading in ("id", "name", "type", "status", "stage", "submitted"):
        table.add_column(heading, no_wrap=heading == "id")
    if waits is not None:
        table.add_column("waits")
    for record in records:
        cells = [
            record.id,
            record.title or record.job.name,
            record.job.training.type,
            record.status,
            record.stage,
            record.created_at.astimezone().strftime("%m-%d %H:%M"),
        ]
        table.add_row(*cells, *(() if waits is None else (waits[record.id] or "",)))
    return table


def delivery_table(log: Sequence[Delivery]) -> Table:
    """Show one delivery of a job's webhook per row."""
    table = FoldedTable()
    for heading in ("number", "event", "at", "status", "attempts", "answer", "next"):
        table.add_column(heading, no_wrap=heading in ("event", "at", "next"))
    for delivery in log:
        at, due_at = (
            "" if time is None else f"{time.astimezone():%m-%d %H:%M:%S}"
            for time in (delivery.at, delivery.due_at)
        )
        number, attempts = str(delivery.sequence), str(delivery.attempts)
        answer = delivery.reason or ""
        table.add_row(number, delivery.event, at, delivery.status, attempts, answer, due_at)
    return table


def webhook_secret_table(entries: Sequence[WebhookSecret]) -> Table:
    """Show one webhook secret per row, without the secret."""
    table = FoldedTable("id", "created")
    for entry in entries:
        table.add_row(entry.id, f"{entry.created_at:%Y-%m-%d %H:%M}")
    return table


def dead_letter_table(records: list[JobRecord]) -> Table:
    """Show one dead-lettered job per row: where and why it failed."""
    table = FoldedTable("id", "name", "ended", "stage", "starts", "error")
    for record in records:
        table.add_row(
            record.id,
            record.job.name,
            record.updated_at.astimezone().strftime("%m-%d %H:%M"),
            record.error_stage,
            str(record.attempt),
            f"{record.error_code}: {record.error}",
        )
    return table


def route_table(route: Route) -> Table:
    """Show a memory estimate's parts, their sum, and the class that holds it."""
    table = FoldedTable("GPU memory", "GiB", title=f"{route.gpu_queue}: {route.reason}")
    for part, gib in route.estimate.parts().items():
        table.add_row(_PARTS.get(part, part), f"{gib:.1f}")
    table.add_section()
    table.add_row("needed", f"{route.estimate.needed_gib:.1f}")
    table.add_row(f"class {route.memory_class} has at least", f"{route.memory_class.floor_gib:.1f}")
    table.add_section()
    table.add_row("blocks recomputed", f"{route.checkpointed_blocks} of {route.blocks}")
    table.add_row("system memory of the machine, GB", str(route.system_memory_gb))
    return table


def dataset_table(report: "Report") -> Table:
    """Show a dataset's problems and warnings, and its number of images by training size."""
    table = FoldedTable(
        "", "file", "problem", "what to do", title=counted(len(report.samples), "image")
    )
    for severity, findings in (("error", report.problems), ("warning", report.warnings)):
        for finding in findings:
            table.add_row(severity, finding.location, finding.message, finding.remedy)
    for size, count in sorted(report.buckets.items()):
        table.add_row("size", str(size), counted(count, "image"), "")
    return table


def estimate_table(expected: Forecast) -> Table:
    """Show how long each stage may wait and run, and from which runs that is known."""
    table = FoldedTable("stage", "wait", "duration", "estimated from", title="expected")
    for stage in expected.stages:
        wait = "unknown" if stage.wait_s is None else duration_text(stage.wait_s)
        takes = "unknown" if stage.seconds is None else duration_text(stage.seconds)
        table.add_row(stage.stage, f"{wait} in {stage.queue}", takes, _source(stage))
    table.add_section()
    if expected.total_s is not None:
        table.add_row("total", "", duration_text(expected.total_s), "")
    else:
        unknown = f"without: {', '.join(expected.unknown)}"
        is_published = any(stage.basis is Basis.PUBLISHED for stage in expected.stages)
        known = "about" if is_published else "at least"
        table.add_row(known, "", duration_text(expected.at_least_s), unknown)
    return table


def duration_tables(history: RunHistory) -> list[Table]:
    """Show a fleet's run history: a table per training type, and one of waits by queue."""
    tables: list[Table] = []
    for training_type, group in groupby(
        _ordered(history), lambda statistics: statistics.source.type
    ):
        headings = ("stage", "on", "runs", "unit", "median", "90 %", "besides")
        table = FoldedTable(*headings, title=training_type)
        for statistics in group:
            seconds = (statistics.unit_s, statistics.unit_s_p90, statistics.overhead_s)
            work = statistics.source
            cells = (work.stage, _workload_text(work), str(statistics.runs), UNITS[work.stage])
            table.add_row(*cells, *map(duration_text, seconds))
        tables.append(table)
    if history.waits:
        table = FoldedTable("queue", "waits", "median", "90 %")
        for queue, waits in history.waits.items():
            texts = map(duration_text, (median(waits), p90(waits)))
            table.add_row(queue, str(len(waits)), *texts)
        tables.append(table)
    return tables


def durations_document(history: RunHistory) -> dict[str, Any]:
    """Return a fleet's run history as JSON."""
    stages = [
        {
            **statistics.source.document(),
            "runs": statistics.runs,
            "unit": UNITS[statistics.source.stage],
            "unit_s": statistics.unit_s,
            "unit_s_p90": statistics.unit_s_p90,
            "overhead_s": statistics.overhead_s,
        }
        for statistics in _ordered(history)
    ]
    queues = [
        {"queue": queue, "waits": len(waits), "wait_s": median(waits), "wait_s_p90": p90(waits)}
        for queue, waits in history.waits.items()
    ]
    return {"stages": stages, "queues": queues}


def _ordered(history: RunHistory) -> Sequence[RunStatistics]:
    """Return the statistics by training type, then by stage in a job's order."""

    def order(statistics: RunStatistics) -> tuple[Any, ...]:
        work = statistics.source
        stage = STAGES.index(work.stage)
        return work.type, stage, work.memory_class or 0, work.size or (), work.samples

    return sorted(history.all_statistics(), key=order)


def _workload_text(work: WorkloadKey) -> str:
    samples = f"{work.samples} samples a step" if work.stage == "train" else None
    memory_class = None if work.memory_class is None else str(work.memory_class)
    if memory_class is not None and work.emulated:
        memory_class += " (emulated)"
    return ", ".join(part for part in (memory_class, work.resolution, samples) if part)


def _source(stage: StageForecast) -> str:
    if stage.unknown is not None:
        return stage.unknown
    if stage.seconds == 0:
        return "nothing to do"
    if stage.basis is Basis.PUBLISHED:
        return f"not measured here; {stage.reference}"
    source = f"{stage.runs} run{'' if stage.runs == 1 else 's'}"
    if stage.scaled_from is not None:
        source += f", scaled from {_workload_text(stage.scaled_from)}"
    return source + ("; less if partly cached" if stage.stage == "cache" else "")
