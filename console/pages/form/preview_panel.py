"""The panel beside the form: route, duration, price, file and problems of the job."""

import json
from collections.abc import Callable
from typing import Any

from nicegui import ui

from console.pages.elements import Tag, button, fact, memory_bar
from console.pages.form.draft import Draft
from console.pages.form.labels import in_labels
from console.pages.formatting import STAGE_NAMES, class_text, count, sentence, size, span
from console.views import EstimateView, Preview, StageEstimateView
from routing.classes import MemoryClass
from tasks.errors import Problem
from tasks.eta.estimate import NO_IMAGES, Basis

_MAX_PROBLEMS = 8
_EMULATED = (
    "This fleet has only emulated GPUs of this class. They compute on the CPU, which suits tiny "
    "models: a real one takes days."
)


class PreviewPanel:
    """The panel.

    Args:
        go_to: Scrolls to the field of a problem.
        label_of: Returns the label of a problem's field.
    """

    def __init__(self, go_to: Callable[[str], None], label_of: Callable[[str], str]) -> None:
        self._go_to, self._label_of = go_to, label_of
        self._problems: list[Problem] = []
        self._shown: Any = None
        with Tag("section", classes="panel stack-small", aria_label="Preview of this job"):
            Tag("h2", "This job")
            self._route = Tag("div", classes="stack-small")
            self._notes = Tag("div", classes="note-list", aria_live="polite")
            self._build_source()
        self._as_json = False
        self._draft: Draft | None = None
        self.show_estimating()

    def show_estimating(self) -> None:
        """Show that the figures are about to follow, in place of another job's."""
        self._shown = None
        self._notes.clear()
        self._route.clear()
        self._route.set_classes("stack-small")
        with self._route:
            Tag("p", "Estimating memory and time…", "muted small")

    @property
    def has_problems(self) -> bool:
        """Whether problems stop the job."""
        return bool(self._problems)

    def show(
        self,
        preview: Preview | None,
        problems: list[Problem],
        draft: Draft,
        missing: list[str] | None = None,
    ) -> None:
        """Show a preview; only changes are sent to the browser.

        Args:
            preview: The preview; None when problems prevent it.
            problems: Problems to fix before the start.
            draft: What the user filled in.
            missing: Locations of the options that the user has not filled in yet.
        """
        self._draft, self._problems = draft, problems
        self._show_source()
        document = preview and preview.model_dump_json(exclude={"job"})
        content = (document, tuple(problems), tuple(missing or ()))
        if content == self._shown:
            return
        self._shown = content
        self._notes.clear()
        with self._notes:
            self._show_problems(problems)
            if missing:
                labels = [self._label_of(location) for location in missing]
                Tag("p", f"Still open: {', '.join(labels)}.", "note small")
            if preview is not None:
                self._show_warnings(preview)
        # Without a preview, the last one stays, dimmed.
        self._route.set_classes("stack-small" if preview is not None else "stack-small stale")
        if preview is not None:
            self._route.clear()
            with self._route:
                self._show_route(preview)

    def go_to_first_problem(self) -> None:
        """Scroll to the field of the first problem."""
        if self._problems:
            self._go_to(self._problems[0].location)

    def _show_problems(self, problems: list[Problem]) -> None:
        if not problems:
            return
        with Tag("div", classes="note note-error"):
            Tag("p", f"{count(len(problems), 'problem')} to fix", "strong")
            with Tag("ul"):
                for problem in problems[:_MAX_PROBLEMS]:
                    with Tag("li"):
                        self._show_problem(problem)

    def _show_problem(self, problem: Problem) -> None:
        if not problem.location:
            Tag("span", in_labels(str(problem)), "small")
            return
        link = Tag("button", self._label_of(problem.location), "reset", type="button")
        link.on("click", lambda: self._go_to(problem.location))
        Tag("span", f" {in_labels(problem.message)}", "small")

    def _show_warnings(self, preview: Preview) -> None:
        if preview.waiting_reason:
            text = sentence(f"the job would wait: {preview.waiting_reason}")
            Tag("p", text, "note note-warning small")
        for warning in preview.warnings:
            Tag("p", sentence(in_labels(warning)), "note note-warning small")
        if preview.route.emulated:
            Tag("p", _EMULATED, "note note-warning small")

    def _show_route(self, preview: Preview) -> None:
        route, estimate = preview.route, preview.estimate
        memory_class = memory_class_of(preview)
        with Tag("dl", classes="facts"):
            fact("GPU", class_text(route.memory_class, emulated=route.emulated))
            fact("Queue", route.queue)
            fact("Time", duration(estimate))
            if preview.price is not None:
                fact("Price", _price(preview.price.amount))
            if preview.file_bytes is not None:
                fact("File", f"about {size(preview.file_bytes)}")
        for note in _time_notes(estimate):
            Tag("p", note, "help")
        needed_gib, available_gib = route.needed_gib, memory_class.floor_gib
        with Tag("div", classes="stack-small memory"):
            with Tag("div", classes="field-head"):
                Tag("h3", "GPU memory")
                Tag("span", f"{needed_gib:.1f} of {available_gib:.1f} GiB", "small")
            memory_bar(route.parts_gib, available_gib)
            Tag("p", f"{sentence(route.reason)} This is an estimate.", "help")

    def _build_source(self) -> None:
        with Tag("details", classes="source"):
            Tag("summary", "Show as a file", "small muted")
            with Tag("div", classes="stack-small code-box"):
                with Tag("div", classes="actions actions-between"):
                    with Tag("div", classes="tabs", role="group", aria_label="Format"):
                        self._yaml = Tag("button", "YAML", type="button", aria_pressed="true")
                        self._json = Tag("button", "JSON", type="button", aria_pressed="false")
                    button("Copy", "quiet small").on("click", self._copy)
                label = "The job as a file"
                self._code = Tag("pre", "", "code", tabindex="0", aria_label=label)
        self._yaml.on("click", lambda: self._set_format(as_json=False))
        self._json.on("click", lambda: self._set_format(as_json=True))

    def _set_format(self, *, as_json: bool) -> None:
        self._as_json = as_json
        self._yaml.set_attribute("aria_pressed", "false" if as_json else "true")
        self._json.set_attribute("aria_pressed", "true" if as_json else "false")
        self._show_source()

    def _show_source(self) -> None:
        self._code.update_text(self._source())

    def _source(self) -> str:
        if self._draft is None:
            return ""
        if self._as_json:
            return json.dumps(self._draft.document(), indent=2, ensure_ascii=False)
        return self._draft.as_yaml()

    def _copy(self) -> None:
        ui.clipboard.write(self._source())
        ui.notify("Copied", type="info", timeout=1500)


def memory_class_of(preview: Preview) -> MemoryClass:
    """Return the memory class of a preview's route."""
    return next(each for each in MemoryClass if str(each) == preview.route.memory_class)


def duration(estimate: EstimateView) -> str:
    """Format how long a job takes."""
    if estimate.total_s is not None:
        return f"about {span(estimate.total_s)}"
    if _published(estimate) is not None:
        return f"about {span(estimate.at_least_s)}"
    known_s = estimate.at_least_s
    return f"at least {span(known_s)}" if known_s >= 1 else "unknown"


def _time_notes(estimate: EstimateView) -> list[str]:
    """Return where the time comes from, and what it leaves out."""
    notes = []
    published = _published(estimate)
    if published is not None:
        notes.append(f"Not measured on this fleet; {published.reference}.")
    elif any(stage.basis is Basis.SCALED for stage in estimate.stages):
        notes.append("Scaled from runs of other sizes on this fleet.")
    if estimate.unknown and estimate.at_least_s >= 1:
        names = [STAGE_NAMES[it].lower() for it in estimate.unknown if it in STAGE_NAMES]
        names += ["waiting in queues"] if len(names) < len(estimate.unknown) else []
        notes.append(f"Without: {', '.join(names)}.")
    if any(stage.unknown == NO_IMAGES for stage in estimate.stages):
        notes.append("Add images to complete the estimate.")
    return notes


def _published(estimate: EstimateView) -> StageEstimateView | None:
    return next((it for it in estimate.stages if it.basis is Basis.PUBLISHED), None)


def _price(amount: float | None) -> str:
    return "unknown" if amount is None else f"about {amount:,.2f}"
