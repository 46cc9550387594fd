"""Jobs and routes as tables for people."""

from rich.markup import escape
from rich.table import Table

from routing.policy import Route
from tasks.contract import STAGES
from tasks.data.validation import Report
from tasks.state.record import JobRecord

_PARTS = {
    "text_encoders": "text encoders",
    "adapters": "trained weights and gradients",
    "optimizer": "optimizer state",
}


def stage_table(record: JobRecord) -> Table:
    """A job's stages: queue, worker, seconds, what each did."""
    table = Table("stage", "queue", "worker", "seconds", "what it did", title=f"job {record.id}")
    unfinished = "stopped" if record.status.ended or record.pending_queue else "running"
    for name in STAGES:
        stage = record.stages.get(name)
        if stage is None:
            table.add_row(name, "", "", "", "")
            continue
        seconds = "" if stage.seconds is None else f"{stage.seconds:.1f}"
        table.add_row(name, stage.queue, stage.worker, seconds, stage.summary or unfinished)
    return table


def job_table(records: list[JobRecord]) -> Table:
    """Jobs, one a row."""
    table = Table()
    for heading in ("id", "name", "type", "status", "stage", "submitted"):
        table.add_column(heading, no_wrap=heading == "id")
    for record in records:
        table.add_row(
            record.id,
            record.job.name,
            record.job.training.type,
            record.status,
            record.stage,
            record.created_at.astimezone().strftime("%m-%d %H:%M"),
        )
    return table


def dead_table(records: list[JobRecord]) -> Table:
    """Dead jobs, one a row: where and why they ended."""
    table = Table("id", "name", "ended", "stage", "starts", "why")
    for record in records:
        table.add_row(
            record.id,
            record.job.name,
            record.updated_at.astimezone().strftime("%m-%d %H:%M"),
            record.error_stage,
            str(record.attempt),
            escape(f"{record.error_code}: {record.error}"),
        )
    return table


def route_table(route: Route) -> Table:
    """An estimate's parts, their sum and the class they lead to."""
    table = Table("GPU memory", "GiB", title=f"{route.gpu_queue}: {route.reason}")
    for part, gib in route.estimate.parts().items():
        table.add_row(_PARTS.get(part, part), f"{gib:.1f}")
    table.add_section()
    table.add_row("needed", f"{route.estimate.needed_gib:.1f}")
    table.add_row(f"class {route.memory_class} has at least", f"{route.memory_class.floor_gib:.1f}")
    table.add_section()
    table.add_row("system memory of its machine, GB", str(route.system_memory_gb))
    return table


def report_table(report: Report) -> Table:
    """What was found in a dataset."""
    table = Table("", "file", "what", "what to do", title=f"{len(report.samples)} images")
    for severity, findings in (("error", report.problems), ("warning", report.warnings)):
        for it in findings:
            table.add_row(severity, *map(escape, (it.location, it.message, it.remedy)))
    for size, count in sorted(report.buckets.items()):
        table.add_row("size", str(size), f"{count} images", "")
    return table
