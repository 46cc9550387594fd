"""``training-worker times``."""

from collections.abc import Sequence
from itertools import groupby
from statistics import median
from typing import Any

from rich.table import Table

from tasks.eta.history import UNITS, RunStatistics, WorkloadKey, p90
from tasks.settings.settings import Settings
from worker.cli.client import client_of
from worker.cli.job_estimate import span, work_text
from worker.cli.output import print_json, stdout


def run(settings: Settings, *, json: bool) -> None:
    """List what finished runs have taught: what each kind of work takes, and the waits."""
    learned = client_of(settings).durations.learned()
    figures = sorted(learned.figures(), key=lambda it: _order(it.learned_from))
    if json:
        waits = [_wait_document(queue, of) for queue, of in learned.waits.items()]
        print_json({"stages": [_document(it) for it in figures], "waits": waits})
        return
    if not figures and not learned.waits:
        stdout.print("no run has finished yet")
    for training_type, mine in groupby(figures, lambda it: it.learned_from.type):
        stdout.print(_figure_table(training_type, list(mine)))
    if learned.waits:
        table = Table("queue", "waits", "median", "90 %")
        for queue, of in learned.waits.items():
            table.add_row(queue, str(len(of)), span(median(of)), span(p90(of)))
        stdout.print(table)


def _order(work: WorkloadKey) -> tuple[Any, ...]:
    place = list(UNITS).index(work.stage)
    return work.type, place, work.memory_class or 0, work.size or (), work.samples


def _document(figure: RunStatistics) -> dict[str, Any]:
    return {
        **figure.learned_from.document(),
        "runs": figure.runs,
        "unit": UNITS[figure.learned_from.stage],
        "unit_s": figure.unit_s,
        "unit_s_p90": figure.unit_s_p90,
        "rest_s": figure.rest_s,
    }


def _wait_document(queue: str, waits: Sequence[float]) -> dict[str, Any]:
    return {"queue": queue, "waits": len(waits), "wait_s": median(waits), "wait_s_p90": p90(waits)}


def _figure_table(training_type: str, figures: list[RunStatistics]) -> Table:
    table = Table("stage", "on", "runs", "each", "median", "90 %", "besides", title=training_type)
    for it in figures:
        table.add_row(
            it.learned_from.stage,
            work_text(it.learned_from),
            str(it.runs),
            UNITS[it.learned_from.stage],
            span(it.unit_s),
            span(it.unit_s_p90),
            span(it.rest_s),
        )
    return table
