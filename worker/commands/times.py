"""``training-worker times``."""

from collections.abc import Sequence
from statistics import median
from typing import Any

from rich.table import Table

from tasks.durations import UNITS, Learned, Work, p90
from tasks.settings import Settings
from worker.client import Client
from worker.outlook import span
from worker.output import print_json, stdout


def run(settings: Settings, *, json: bool) -> None:
    """List what finished runs have taught: what each kind of work takes, and the waits."""
    learned = Client(settings).durations.learned()
    stages = [_stage(learned, work) for work in sorted(learned.runs, key=_order)]
    waits = [_wait(queue, of) for queue, of in learned.waits.items()]
    if json:
        print_json({"stages": stages, "waits": waits})
    elif not stages and not waits:
        stdout.print("no run has finished yet")
    else:
        stdout.print(_stage_table(stages))
        stdout.print(_wait_table(waits))


def _order(work: Work) -> tuple[Any, ...]:
    return list(UNITS).index(work.stage), work.type, work.memory_class or 0, work.size, work.samples


def _stage(learned: Learned, work: Work) -> dict[str, Any]:
    figure = learned.figure(work)
    assert figure is not None
    return {
        **work.document(),
        "runs": figure.runs,
        "unit": UNITS[work.stage],
        "unit_s": figure.unit_s,
        "unit_s_p90": figure.unit_s_p90,
        "rest_s": figure.rest_s,
    }


def _wait(queue: str, waits: Sequence[float]) -> dict[str, Any]:
    return {"queue": queue, "waits": len(waits), "wait_s": median(waits), "wait_s_p90": p90(waits)}


def _stage_table(stages: list[dict[str, Any]]) -> Table:
    headings = ("stage", "type", "class", "resolution", "samples", "runs", "median", "90 %", "rest")
    table = Table(*headings)
    for it in stages:
        table.add_row(
            it["stage"],
            it["type"],
            it["memory_class"],
            it["resolution"],
            str(it["samples"]) if it["stage"] == "train" else "",
            str(it["runs"]),
            f"{span(it['unit_s'])} a {it['unit']}",
            span(it["unit_s_p90"]),
            span(it["rest_s"]),
        )
    return table


def _wait_table(waits: list[dict[str, Any]]) -> Table:
    table = Table("queue", "waits", "median", "90 %")
    for it in waits:
        cells = (it["queue"], str(it["waits"]), span(it["wait_s"]), span(it["wait_s_p90"]))
        table.add_row(*cells)
    return table
