"""The parts of a job's page: stages, loss, samples, files, log."""

import json
from urllib.parse import quote

from nicegui import ui

from console.errors import ConsoleError
from console.pages.elements import Tag, button, panel
from console.pages.formatting import STAGE_NAMES, count, size, span
from console.pages.job.event_log import EventLog, Line
from console.pages.job.loss import LossCurve, chart_options
from console.pages.layout import Frame
from console.security_headers import API
from console.services.file_links import MAX_LIFE_S, FileLinks
from console.views import FilesView, FileView, JobView, SampleView, StageView
from tasks.access.api_keys import Scope
from tasks.errors import JobError
from tasks.state.record import JobStatus

# Samples on the page; the latest ones matter most.
_MAX_SAMPLES = 48
_NO_VALUE = "-"
_SAMPLE_PREFIX = "validation/"


class StagesPart:
    """The stages with their durations, and the progress of the current one."""

    def __init__(self) -> None:
        with Tag("div", classes="stack"):
            with Tag("ol", classes="stages"):
                self._rows = [self._row(name) for name in STAGE_NAMES]
            with Tag("div", classes="stack-small") as self._progress:
                self._bar = Tag("progress", aria_label="Progress of this stage")
                with Tag("div", classes="figures"):
                    self._done = _figure("Done")
                    self._speed = _figure("Speed")
                    self._left = _figure("Left")
                    self._loss = _figure("Loss")
            self._waiting_reason = Tag("p", "", "note small")

    def show(self, view: JobView, log: EventLog) -> None:
        """Show the job's stages and progress."""
        for row, stage in zip(self._rows, view.stages, strict=True):
            box, duration, details = row
            state, text = _stage_state(view, stage)
            box.set_classes(f"stage stage-{state}")
            duration.update_text(text)
            details.update_text(stage.summary or (stage.worker or "" if state == "running" else ""))
        progress = log.progress
        is_visible = progress is not None and not JobStatus(view.status).ended
        self._progress.set_visibility(is_visible)
        self._waiting_reason.set_visibility(bool(view.waiting_reason))
        self._waiting_reason.update_text(view.waiting_reason or "")
        if progress is None or not is_visible:
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

    def _row(self, name: str) -> tuple[Tag, Tag, Tag]:
        with Tag("li", classes="stage") as box:
            with Tag("div", classes="stage-name"):
                Tag("span", STAGE_NAMES[name])
                duration = Tag("span", "", "muted small")
            details = Tag("span", "", "muted small break")
        return box, duration, details


class LossPart:
    """The loss curve, as a chart and in words."""

    def __init__(self) -> None:
        self._summary = Tag("p", "The curve appears with the first training step.", "muted small")
        self._box = Tag("div")
        self._chart: ui.echart | None = None
        self._shown: object = None

    def show(self, curve: LossCurve, *, has_ended: bool) -> None:
        """Show the curve."""
        if curve.last is None and has_ended:
            self._summary.update_text("There is no loss curve: no training step was recorded.")
        if curve.last is None or curve.last == self._shown:
            return
        self._shown = curve.last
        step, loss = curve.last
        self._summary.update_text(f"{loss:.4f} at step {step:,}; the bold line is the trend.")
        options = chart_options(curve)
        if self._chart is None:
            with self._box:
                self._chart = ui.echart(options, renderer="svg").classes("chart")
            self._chart.props["role"] = "img"
        else:
            self._chart.options.update(options)
        self._chart.props["aria-label"] = f"Loss over steps, {loss:.4f} at step {step}"
        self._chart.update()


class SamplesPart:
    """Validation images, which show how the training develops."""

    def __init__(self, frame: Frame, job_id: str) -> None:
        self._frame, self._job_id = frame, job_id
        self.shown_validations = 0
        self._panel = panel("Samples", "The same prompts and noise at each step.")
        with self._panel:
            self._box = Tag("div", classes="samples")
        self._panel.set_visibility(False)

    def show(self, samples: tuple[SampleView, ...], log: EventLog) -> None:
        """Show the samples, newest first."""
        self.shown_validations = log.validations
        newest = sorted(samples, key=lambda it: -it.step)[:_MAX_SAMPLES]
        self._panel.set_visibility(bool(newest))
        self._box.clear()
        with self._box:
            for sample in newest:
                self._show_sample(sample)

    def _show_sample(self, sample: SampleView) -> None:
        path = f"{API}/jobs/{quote(self._job_id)}/samples/{quote(sample.name)}"
        prompt = sample.prompt or "a validation prompt"
        with Tag("figure", classes="sample"):
            with Tag("a", href=self._frame.link(path), target="_blank"):
                Tag(
                    "img", src=self._frame.link(path), loading="lazy",
                    alt=f"{prompt}, at step {sample.step}",
                )  # fmt: skip
            with Tag("figcaption"):
                Tag("div", f"Step {sample.step:,}", "strong")
                Tag("div", prompt, "muted break")


class FilesPart:
    """Published files."""

    def __init__(self, frame: Frame, links: FileLinks, job_id: str) -> None:
        self._frame, self._links, self._job_id = frame, links, job_id
        self._panel = panel("Results", "The first file has the trained weights.")
        with self._panel:
            self._box = Tag("div")
        self._panel.set_visibility(False)

    def show(self, view: FilesView) -> None:
        """Show the files; the samples, which are many, in a disclosure."""
        self._panel.set_visibility(bool(view.files))
        samples = [file for file in view.files if file.name.startswith(_SAMPLE_PREFIX)]
        others = [file for file in view.files if not file.name.startswith(_SAMPLE_PREFIX)]
        self._box.clear()
        with self._box:
            self._show_table(others, "Published files")
            if samples:
                with Tag("details", classes="more-files"):
                    with Tag("summary"):
                        Tag("h3", f"{count(len(samples), 'sample')}")
                    self._show_table(samples, "Published samples")

    def _show_table(self, files: list[FileView], caption: str) -> None:
        with Tag("div", classes="table-box"), Tag("table", classes="table table-rows"):
            Tag("caption", caption, "sr-only")
            with Tag("thead"), Tag("tr"):
                for heading, classes in (
                    ("File", ""),
                    ("Size", "right"),
                    ("SHA-256", ""),
                    ("", ""),
                ):
                    Tag("th", heading, classes, scope="col")
            with Tag("tbody"):
                for number, file in enumerate(files):
                    self._show_file(file, is_first=number == 0)

    def _show_file(self, file: FileView, *, is_first: bool) -> None:
        path = f"{API}/jobs/{quote(self._job_id)}/files/{quote(file.name)}"
        with Tag("tr"):
            Tag("td", file.name, "break")
            Tag("td", size(file.size), "right nowrap")
            Tag("td", file.sha256, "mono mono-small muted wide break")
            with Tag("td", classes="right act"):
                Tag(
                    "a", "Download", "btn btn-small" + (" btn-primary" if is_first else ""),
                    href=self._frame.link(path), download=file.name,
                    aria_label=f"Download {file.name}",
                )  # fmt: skip
                copy = button("Copy link", "small", aria_label=f"Copy link to {file.name}")
                copy.on("click", lambda: self._copy_link(file.name))

    async def _copy_link(self, name: str) -> None:
        """Copy a link that downloads a file without a key, for an hour."""
        try:
            caller = self._frame.allowed(Scope.FILES)
            link = await self._links.create(caller, self._job_id, name, MAX_LIFE_S)
        except (ConsoleError, JobError) as error:
            ui.notify(str(error), type="warning")
            return
        path = json.dumps(self._frame.link(f"{API}{link.path}"))
        # Browsers have no clipboard for pages without HTTPS, but on this machine.
        ui.run_javascript(
            f"const link = location.origin + {path};"
            "(navigator.clipboard ? navigator.clipboard.writeText(link) : Promise.reject())"
            ".catch(() => prompt('Copy this link:', link))"
        )
        ui.notify("Anyone with this link can download the file for an hour.")


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
                Tag("time", f"{line.at:%H:%M:%S}", datetime=line.at.isoformat())
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
        return ("running", "running") if is_running else ("waiting", "waiting")
    return "waiting", ""
