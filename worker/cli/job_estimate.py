"""What a job is expected to take, as the fleet's finished runs tell: for people and programs."""

from collections.abc import Collection
from datetime import datetime, timedelta
from typing import Any

import redis
from rich.table import Table

from tasks.errors import NoBrokerError
from tasks.eta.estimate import NO_RUN, TAKES_LONGER, Forecast, StageForecast, forecast
from tasks.eta.history import WorkloadKey
from tasks.jobs.job import TrainingJob
from tasks.settings.settings import Settings
from worker.cli.client import client_of
from worker.cli.output import stdout


class PreviewPanel:
    """What a fleet says of a job that is not submitted; without a broker, why none was asked.

    Args:
        settings: Say which fleet.
        job: The job.
        sizes: How many images are of each training size; None where nobody has looked.
    """

    def __init__(
        self, settings: Settings, job: TrainingJob, sizes: Collection[int] | None = None
    ) -> None:
        self._forecast: Forecast | None = None
        self._no_fleet = ""
        try:
            learned = client_of(settings).durations.learned()
        except (NoBrokerError, redis.ConnectionError, redis.TimeoutError) as error:
            self._no_fleet = str(error)
        else:
            self._forecast = forecast(
                job.training, job.route(settings.constants).gpu_queue, learned, sizes
            )

    def document(self) -> dict[str, Any]:
        """For programs: ``expected`` is null where no fleet was asked, with ``no_fleet``'s why."""
        if self._forecast is None:
            return {"expected": None, "no_fleet": self._no_fleet}
        return {"expected": self._forecast.document()}

    def show(self) -> None:
        """For people."""
        if self._forecast is None:
            message = f"no fleet was asked how long the job takes: {self._no_fleet}"
            stdout.print(message, markup=False, soft_wrap=True)
        elif self._forecast.at_least_s == 0:
            stdout.print(f"how long it takes is not known: there is {NO_RUN}")
        else:
            stdout.print(_table(self._forecast))


def left_line(left: Forecast, now: datetime) -> str:
    """What is left of a job, in a line."""
    current = left.stages[0]
    if left.total_s is None:
        why = f"; {current.stage} {current.unknown}" if current.unknown == TAKES_LONGER else ""
        return f"at least {span(left.at_least_s)}; not known: {', '.join(left.unknown)}{why}"
    begins = f"{span(current.wait_s)} until {current.stage} begins" if current.wait_s else None
    first = begins or f"{span(current.seconds or 0.0)} of {current.stage}"
    end = (now + timedelta(seconds=left.total_s)).astimezone()
    return f"{first}, {span(left.total_s)} in all, until {end:%m-%d %H:%M}"


def span(seconds: float) -> str:
    """A span of time as people say it: ``2 h 5 min``."""
    if seconds < 10:
        return f"{seconds:.2g} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    parts = ((days, "d"), (hours, "h"), (minutes, "min"), (rest, "s"))
    return " ".join([f"{n} {unit}" for n, unit in parts if n][:2])


def work_text(work: WorkloadKey) -> str:
    """What a figure was learned from, in a few words."""
    samples = f"{work.samples} samples a step" if work.stage == "train" else None
    memory_class = None if work.memory_class is None else str(work.memory_class)
    return ", ".join(it for it in (memory_class, work.resolution, samples) if it)


def _table(expected: Forecast) -> Table:
    table = Table("stage", "waits", "takes", "learned from", title="expected")
    for stage in expected.stages:
        wait = "not known" if stage.wait_s is None else span(stage.wait_s)
        takes = "not known" if stage.seconds is None else span(stage.seconds)
        table.add_row(stage.stage, f"{wait} in {stage.queue}", takes, _source(stage))
    table.add_section()
    if expected.total_s is not None:
        table.add_row("in all", "", span(expected.total_s), "")
    else:
        without = f"without: {', '.join(expected.unknown)}"
        table.add_row("at least", "", span(expected.at_least_s), without)
    return table


def _source(stage: StageForecast) -> str:
    if stage.unknown is not None:
        return stage.unknown
    if stage.seconds == 0:
        return "nothing to do"
    source = f"{stage.runs} run{'' if stage.runs == 1 else 's'}"
    if stage.scaled_from is not None:
        source += f", scaled from {work_text(stage.scaled_from)}"
    return source + ("; less where it is cached" if stage.stage == "cache" else "")
