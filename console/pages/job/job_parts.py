"""The parts of a job's page that follow its run: stages, loss and log."""

from datetime import UTC, datetime
from typing import Any

from nicegui import ui

from console.pages.elements import Field, LocalTime, Tag
from console.pages.formatting import STAGE_NAMES, size, span
from console.pages.job.event_log import EventLog, Line
from console.pages.job.loss import loss_chart, rate_chart
from console.views import JobView, StageView
from tasks.state.record import JobStatus

_NO_VALUE = "-"


class StagesPart:
    """The stages with their durations, and the progress of the current one."""

    def __init__(self) -> None:
        with Tag("div", classes="stack"):
            with Tag("ol", classes="stages"):
                self._rows = [self._row(name) for name in STAGE_NAMES]
            with Tag("div", classes="stack-small") as self._progress:
                self._bar = Tag("progress", aria_label="Progress of this stage")
                with Tag("div", classes="figures") as self._figures:
                    self._done = _figure("Done")
                    self._speed = _figure("Speed")
                    self._left = _figure("Left in this stage")
                    self._loss = _figure("Loss")
            self._waiting_reason = Tag("p", "", "note small")

    def show(self, view: JobView, log: EventLog) -> None:
        """Show the job's stages and progress."""
        for row, stage in zip(self._rows, view.stages, strict=True):
            box, duration, elapsed, details = row
            state, text = _stage_state(view, stage)
            box.set_classes(f"stage stage-{state}")
            duration.update_text(text)
            details.update_text(stage.summary or (stage.worker or "" if state == "running" else ""))
            elapsed.set_visibility(state == "running")
            if state == "running" and stage.started_at is not None:
                elapsed.show(stage.started_at)
        is_running = any(_stage_state(view, stage)[0] == "running" for stage in view.stages)
        progress = log.progress if is_running else None
        if progress is not None and progress.stage != view.stage:
            progress = None
        # A stage that has not reported yet moves, too: a model is being loaded.
        self._progress.set_visibility(is_running)
        self._figures.set_visibility(progress is not None)
        self._waiting_reason.set_visibility(bool(view.waiting_reason))
        self._waiting_reason.update_text(view.waiting_reason or "")
        if progress is None:
            self._bar.set_attribute("value", None)
            return
        self._bar.set_attribute("max", max(progress.total, 1))
        self._bar.set_attribute("value", min(progress.done, max(progress.total, 1)))
        if progress.unit == "bytes":
            self._done.update_text(f"{size(progress.done)} of {size(progress.total)}")
        else:
            self._done.update_text(f"{progress.done:,} / {progress.total:,}")
        speed = progress.per_second
        self._speed.update_text(_NO_VALUE if not speed else _speed(speed, progress.unit))
        left_s = None if not speed else (progress.total - progress.done) / speed
        self._left.update_text(_NO_VALUE if left_s is None else span(max(left_s, 0.0)))
        self._loss.update_text(_NO_VALUE if progress.loss is None else f"{progress.loss:.4f}")

    def _row(self, name: str) -> tuple[Tag, Tag, LocalTime, Tag]:
        with Tag("li", classes="stage") as box:
            with Tag("div", classes="stage-name"):
                Tag("span", STAGE_NAMES[name])
                with Tag("span", classes="muted small"):
                    duration = Tag("span")
                    elapsed = LocalTime(datetime.now(UTC), "elapsed")
            elapsed.set_visibility(False)
            details = Tag("span", "", "muted small break")
        return box, duration, elapsed, details


class Chart:
    """A chart that appears with its first values.

    Args:
        name: What it shows, for its label.
        is_low: Whether it is less high than others.
    """

    def __init__(self, name: str, *, is_low: bool = False) -> None:
        self._name, self._classes = name, "chart chart-low" if is_low else "chart"
        self._box = Tag("div")
        self._chart: ui.echart | None = None
        self._shown: object = None

    def show(self, options: dict[str, Any], summary: str, version: object) -> None:
        """Show the chart; nothing is sent if the version is the same."""
        if version == self._shown:
            return
        self._shown = version
        if self._chart is None:
            with self._box:
                self._chart = ui.echart(options, renderer="svg").classes(self._classes)
            self._chart.props["role"] = "img"
        else:
            self._chart.options.clear()
            self._chart.options.update(options)
        self._chart.props["aria-label"] = f"{self._name} over steps, {summary}"
        self._chart.update()


class LossPart:
    """The loss curve and the learning rate, as charts and in words."""

    def __init__(self) -> None:
        with Tag("div", classes="chart-head"):
            self._summary = Tag(
                "p", "The curve appears with the first training step.", "muted small"
            )
            self._switch = Field("Logarithmic", "switch", False, self._set_log)
        self._switch.set_visibility(False)
        self._loss = Chart("Loss")
        self._rate_heading = Tag("h3", "Learning rate", "chart-title")
        self._rate_heading.set_visibility(False)
        self._rate = Chart("Learning rate", is_low=True)
        self._log: EventLog | None = None
        self._is_log = False

    def show(self, log: EventLog, *, has_ended: bool) -> None:
        """Show the curves."""
        self._log = log
        if log.curve.last is None:
            if has_ended:
                self._summary.update_text("There is no loss curve: no training step was recorded.")
            return
        step, loss = log.curve.last
        self._switch.set_visibility(True)
        self._summary.update_text(f"{loss:.4f} at step {step:,}; the bold line is the trend.")
        chart = loss_chart(log.curve, is_log=self._is_log)
        self._loss.show(chart, f"{loss:.4f} at step {step}", (log.curve.last, self._is_log))
        if log.rates.last is not None:
            self._rate_heading.set_visibility(True)
            _, rate = log.rates.last
            self._rate.show(rate_chart(log.rates), f"{rate:.3g} at step {step}", log.rates.last)

    def _set_log(self, is_log: bool) -> None:
        self._is_log = is_log
        if self._log is not None:
            self.show(self._log, has_ended=False)


class LogPart:
    """The log, newest line first."""

    def __init__(self) -> None:
        self._box = Tag("ol", classes="log", tabindex="0", aria_label="Log, newest first")
        self._last: Line | None = None
        self._rows: list[Tag] = []

    def show(self, lines: list[Line]) -> None:
        """Add new lines."""
        known = lines.index(self._last) + 1 if self._last in lines else 0
        for line in lines[known:]:
            with self._box:
                row = Tag("li", classes="log-warning" if line.is_warning else "")
            row.move(target_index=0)
            with row:
                LocalTime(line.at, "clock")
                Tag("span", line.text)
            self._rows.append(row)
            self._last = line
        while len(self._rows) > len(lines):
            self._rows.pop(0).delete()


def _figure(name: str) -> Tag:
    with Tag("div"):
        Tag("div", name, "figure-name")
        return Tag("div", _NO_VALUE, "figure-value")


def _speed(per_second: float, unit: str) -> str:
    if unit == "bytes":
        return f"{size(round(per_second))}/s"
    return f"{per_second:.2f}/s" if per_second >= 0.2 else f"{1 / per_second:.1f} s each"


def _stage_state(view: JobView, stage: StageView) -> tuple[str, str]:
    """Return the state of a stage, for its style, and the text beside its name."""
    if stage.seconds is not None:
        return "done", span(stage.seconds)
    if view.error is not None and view.error.stage == stage.name:
        return "failed", "failed"
    if view.stage == stage.name and not JobStatus(view.status).ended:
        is_running = view.waiting_reason is None
        return ("running", "running for ") if is_running else ("waiting", "waiting")
    return "waiting", ""
