"""The parts of a job's page: stages, loss, samples, files, log."""

from urllib.parse import quote

from nicegui import ui

from console.pages.formatting import STAGE_NAMES, count, size, span
from console.pages.job.event_log import EventLog, Line
from console.pages.job.loss import LossCurve, chart_options
from console.pages.layout import Frame
from console.pages.markup import Tag, panel
from console.security_headers import API
from console.views import FilesView, FileView, JobView, SampleView, StageView
from tasks.state.record import JobStatus

# A page of images; the newest matter.
_MOST_SAMPLES = 48
_NOTHING = "-"
_SAMPLES = "validation/"


class StagesPart:
    """The stages with their times, and how far the current one is."""

    def __init__(self) -> None:
        with Tag("div", classes="stack"):
            with Tag("ol", classes="stages"):
                self._rows = [self._row(name) for name in STAGE_NAMES]
            with Tag("div", classes="stack-small") as self._box:
                self._bar = Tag("progress", aria_label="Progress of this stage")
                with Tag("div", classes="figures"):
                    self._done = _figure("Done")
                    self._speed = _figure("Speed")
                    self._left = _figure("Left")
                    self._loss = _figure("Loss")
            self._waits = Tag("p", "", "note small")

    def show(self, view: JobView, heard: EventLog) -> None:
        """Show where the job is."""
        for row, stage in zip(self._rows, view.stages, strict=True):
            box, time, about = row
            look, told = _stage(view, stage)
            box.look(f"stage stage-{look}")
            time.say(told)
            about.say(stage.summary or (stage.worker or "" if look == "running" else ""))
        progress = heard.progress
        is_shown = progress is not None and not JobStatus(view.status).ended
        self._box.set_visibility(is_shown)
        self._waits.set_visibility(bool(view.waiting_reason))
        self._waits.say(view.waiting_reason or "")
        if progress is None or not is_shown:
            return
        self._bar.have("max", max(progress.total, 1))
        self._bar.have("value", min(progress.done, max(progress.total, 1)))
        if progress.unit == "bytes":
            self._done.say(f"{size(progress.done)} of {size(progress.total)}")
        else:
            self._done.say(f"{progress.done:,} / {progress.total:,}")
        speed = progress.per_second
        self._speed.say(_NOTHING if not speed else _speed(speed, progress.unit))
        left = None if not speed else (progress.total - progress.done) / speed
        self._left.say(_NOTHING if left is None else span(max(left, 0.0)))
        self._loss.say(_NOTHING if progress.loss is None else f"{progress.loss:.4f}")

    def _row(self, name: str) -> tuple[Tag, Tag, Tag]:
        with Tag("li", classes="stage") as box:
            with Tag("div", classes="stage-name"):
                Tag("span", STAGE_NAMES[name])
                time = Tag("span", "", "muted small")
            about = Tag("span", "", "muted small break")
        return box, time, about


class LossPart:
    """The loss curve, as an image and in words."""

    def __init__(self) -> None:
        self._words = Tag("p", "It appears with the first step of training.", "muted small")
        self._box = Tag("div")
        self._chart: ui.echart | None = None
        self._shown: object = None

    def show(self, curve: LossCurve, *, is_over: bool) -> None:
        """Show the curve as it is now."""
        if curve.last is None and is_over:
            self._words.say("There is none: no step of training was made, or it is long ago.")
        if curve.last is None or curve.last == self._shown:
            return
        self._shown = curve.last
        step, loss = curve.last
        self._words.say(f"{loss:.4f} at step {step:,}; the strong line is its trend.")
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
    """The images that were made to see how the training goes."""

    def __init__(self, frame: Frame, job_id: str) -> None:
        self._frame, self._job_id = frame, job_id
        self.shown = 0
        self._panel = panel("Samples", "The same prompts and noise at each step.")
        with self._panel:
            self._box = Tag("div", classes="samples")
        self._panel.set_visibility(False)

    def show(self, samples: tuple[SampleView, ...], heard: EventLog) -> None:
        """Show them, the newest first."""
        self.shown = heard.samples
        newest = sorted(samples, key=lambda it: -it.step)[:_MOST_SAMPLES]
        self._panel.set_visibility(bool(newest))
        self._box.clear()
        with self._box:
            for sample in newest:
                path = f"{API}/jobs/{quote(self._job_id)}/samples/{quote(sample.name)}"
                words = sample.prompt or "a validation prompt"
                with Tag("figure", classes="sample"):
                    with Tag("a", href=self._frame.link(path), target="_blank"):
                        Tag(
                            "img", src=self._frame.link(path), loading="lazy",
                            alt=f"{words}, at step {sample.step}",
                        )  # fmt: skip
                    with Tag("figcaption"):
                        Tag("div", f"Step {sample.step:,}", style="font-weight: 500")
                        Tag("div", words, "muted break")


class FilesPart:
    """What the job published."""

    def __init__(self, frame: Frame, job_id: str) -> None:
        self._frame, self._job_id = frame, job_id
        self._panel = panel("Results", "The first file is the trained one.")
        with self._panel:
            self._box = Tag("div")
        self._panel.set_visibility(False)

    def show(self, view: FilesView) -> None:
        """Show the files; samples, which are many and seen above, behind a line that opens."""
        self._panel.set_visibility(bool(view.files))
        samples = [it for it in view.files if it.name.startswith(_SAMPLES)]
        others = [it for it in view.files if not it.name.startswith(_SAMPLES)]
        self._box.clear()
        with self._box:
            self._show(others, "Published files")
            if samples:
                with Tag("details", style="padding-top: 40px"):
                    with Tag("summary"):
                        Tag("h3", f"{count(len(samples), 'sample')}")
                    self._show(samples, "Published samples")

    def _show(self, files: list[FileView], caption: str) -> None:
        with Tag("div", classes="table-box"), Tag("table", classes="table table-rows"):
            Tag("caption", caption, "sr-only")
            with Tag("thead"), Tag("tr"):
                for heading, look in (("File", ""), ("Size", "right"), ("SHA-256", ""), ("", "")):
                    Tag("th", heading, look, scope="col")
            with Tag("tbody"):
                for number, file in enumerate(files):
                    path = f"{API}/jobs/{quote(self._job_id)}/files/{quote(file.name)}"
                    with Tag("tr"):
                        Tag("td", file.name, "break")
                        Tag("td", size(file.size), "right nowrap")
                        Tag("td", file.sha256, "mono mono-small muted wide break")
                        with Tag("td", classes="right act"):
                            look = "btn btn-small" + ("" if number else " btn-primary")
                            Tag(
                                "a", "Download", look, href=self._frame.link(path),
                                download=file.name, aria_label=f"Download {file.name}",
                            )  # fmt: skip


class LogPart:
    """What happened, a line each, the newest first."""

    def __init__(self) -> None:
        self._box = Tag("ol", classes="log", tabindex="0", aria_label="Log, the newest first")
        self._last: Line | None = None
        self._rows: list[Tag] = []

    def show(self, lines: list[Line]) -> None:
        """Add the lines that are new."""
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
        return Tag("div", _NOTHING, "figure-value")


def _speed(per_second: float, unit: str) -> str:
    if unit == "bytes":
        return f"{size(round(per_second))}/s"
    return f"{per_second:.2f}/s" if per_second >= 0.2 else f"{1 / per_second:.1f} s each"


def _stage(view: JobView, stage: StageView) -> tuple[str, str]:
    """How a stage looks, and its time."""
    if stage.seconds is not None:
        return "done", span(stage.seconds)
    if view.error is not None and view.error.stage == stage.name:
        return "failed", "failed"
    if view.stage == stage.name and not JobStatus(view.status).ended:
        is_running = view.waiting_reason is None
        return ("running", "running") if is_running else ("waiting", "waits")
    return "waiting", ""
