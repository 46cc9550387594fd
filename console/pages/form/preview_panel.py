"""The panel beside the form: where the job would go, what it takes, and what is to be mended."""

import json
from collections.abc import Awaitable, Callable
from typing import Any

from nicegui import ui

from console.pages.form.draft import Draft
from console.pages.formatting import PART_NAMES, STAGE_NAMES, count, span
from console.pages.layout import Frame
from console.pages.markup import Tag, button, fact
from console.views import Preview
from routing.classes import MemoryClass
from tasks.errors import Problem


class PreviewPanel:
    """The panel.

    Args:
        frame: The page around it.
        on_start: Starts the job.
        go_to: Brings the field of a fault into view.
    """

    def __init__(
        self, frame: Frame, on_start: Callable[[], Awaitable[None]], go_to: Callable[[str], None]
    ) -> None:
        self._on_start, self._go_to = on_start, go_to
        self._problems: list[Problem] = []
        self._is_starting = False
        self._told: Any = None
        with Tag("section", classes="panel stack-small") as box:
            Tag("h2", "This job")
            self._route = Tag("div", classes="stack-small")
            self._notes = Tag("div", classes="note-list", aria_live="polite")
            self._start = button("Start training", "primary wide")
            self._start.on("click", self._clicked)
            with Tag("details") as source:
                Tag("summary", "Show as a file", "small muted")
                with Tag("div", classes="stack-small", style="padding-top: 10px"):
                    with Tag("div", classes="actions", style="justify-content: space-between"):
                        with Tag("div", classes="tabs", role="group", aria_label="Format"):
                            self._yaml = Tag("button", "YAML", type="button", aria_pressed="true")
                            self._json = Tag("button", "JSON", type="button", aria_pressed="false")
                        copy = button("Copy", "quiet small")
                    self._code = Tag(
                        "pre", "", "code", tabindex="0", aria_label="The job as a file"
                    )
        box.have("aria_label", "What this job needs")
        source.classes("source")
        self._as_json = False
        self._yaml.on("click", lambda: self._form(False))
        self._json.on("click", lambda: self._form(True))
        copy.on("click", self._copy)
        self._draft: Draft | None = None
        with self._route:
            Tag("p", "Working out what it needs…", "muted small")

    @property
    def has_faults(self) -> bool:
        """Whether something stops the job."""
        return bool(self._problems)

    def show(
        self,
        preview: Preview | None,
        problems: list[Problem],
        draft: Draft,
        still_open: list[str] | None = None,
    ) -> None:
        """Show what would become of a job; only what has changed is sent.

        Args:
            preview: What would; None where that cannot be told.
            problems: What must be fixed first.
            draft: What was filled in.
            still_open: Options that nobody has come to yet.
        """
        self._draft, self._problems = draft, problems
        self._show_code()
        dumped = preview and preview.model_dump_json(exclude={"job"})
        told = (dumped, tuple(problems), tuple(still_open or ()))
        if told == self._told:
            return
        self._told = told
        self._notes.clear()
        with self._notes:
            self._show_problems(problems)
            if still_open:
                Tag("p", f"Still open: {', '.join(still_open)}.", "note small")
            if preview is not None:
                self._show_notes(preview)
        # What is shown is of before.
        self._route.look("stack-small" if preview is not None else "stack-small stale")
        if preview is not None:
            self._route.clear()
            with self._route:
                self._show_route(preview)

    def go_to_first_fault(self) -> None:
        """Bring the field of the first fault into view."""
        if self._problems:
            self._go_to(self._problems[0].location)

    async def _clicked(self) -> None:
        if self._is_starting:
            return
        self._is_starting = True
        self._start.have("aria_disabled", "true")
        try:
            await self._on_start()
        finally:
            self._is_starting = False
            self._start.have("aria_disabled", None)

    def _show_problems(self, problems: list[Problem]) -> None:
        if not problems:
            return
        with Tag("div", classes="note note-error"):
            Tag("p", f"{count(len(problems), 'thing')} to mend", style="font-weight: 500")
            with Tag("ul"):
                for problem in problems[:8]:
                    with Tag("li"):
                        if problem.location:
                            name = problem.location.removeprefix("training.")
                            link = Tag("button", name, "reset", type="button")
                            link.on("click", lambda _, where=problem.location: self._go_to(where))
                        Tag(
                            "span",
                            f" {problem.message}" if problem.location else str(problem),
                            "small",
                        )

    def _show_notes(self, preview: Preview) -> None:
        if preview.waiting_reason:
            Tag(
                "p",
                _sentence(f"it would wait: {preview.waiting_reason}"),
                "note note-warning small",
            )
        for warning in preview.warnings:
            Tag("p", _sentence(warning), "note note-warning small")

    def _show_route(self, preview: Preview) -> None:
        route = preview.route
        memory_class = next(it for it in MemoryClass if str(it) == route["memory_class"])
        with Tag("dl", classes="facts"):
            fact("GPU", f"{memory_class.value} GB class")
            fact("Queue", route["queue"])
            expected = preview.estimate
            fact("Takes", _expected(expected))
            if preview.price is not None:
                fact("Costs", _price(preview.price.amount))
        if expected["unknown"] and expected["at_least_s"] >= 1:
            unknown = [STAGE_NAMES.get(it, it).lower() for it in expected["unknown"]]
            Tag("p", f"Not known yet: {', '.join(unknown)}.", "help")
        needed, there = float(route["needed_gib"]), memory_class.floor_gib
        with Tag("div", classes="stack-small", style="padding: 8px 0"):
            with Tag("div", classes="field-head"):
                Tag("h3", "GPU memory")
                Tag("span", f"{needed:.1f} of {there:.1f} GiB", "small")
            memory_bar(route["parts_gib"], there)
            Tag("p", f"{_sentence(route['reason'])} An estimate, not a measurement.", "help")

    def _form(self, as_json: bool) -> None:
        self._as_json = as_json
        self._yaml.have("aria_pressed", "false" if as_json else "true")
        self._json.have("aria_pressed", "true" if as_json else "false")
        self._show_code()

    def _show_code(self) -> None:
        self._code.say(self._text())

    def _text(self) -> str:
        if self._draft is None:
            return ""
        if self._as_json:
            return json.dumps(self._draft.document(), indent=2, ensure_ascii=False)
        return self._draft.as_yaml()

    def _copy(self) -> None:
        ui.clipboard.write(self._text())
        ui.notify("Copied", type="info", timeout=1500)


def memory_bar(parts: dict[str, float], there_gib: float) -> None:
    """GPU memory by its parts, as a bar and in words."""
    shown = [(i, name, gib) for i, (name, gib) in enumerate(parts.items(), 1) if gib >= 0.05]
    whole = max(there_gib, sum(parts.values()))
    with Tag("div", classes="bar", aria_hidden="true"):
        for number, _, gib in shown:
            Tag("span", "", f"bar-part part-{number}", style=f"width: {100 * gib / whole:.2f}%")
    with Tag("ul", classes="legend"):
        for number, name, gib in shown:
            with Tag("li", classes="legend-row"):
                Tag("span", "", f"legend-mark part-{number}", aria_hidden="true")
                Tag("span", PART_NAMES.get(name, name))
                Tag("span", f"{gib:.1f} GiB", "right")


def _expected(expected: dict[str, Any]) -> str:
    if expected["total_s"] is not None:
        return f"about {span(expected['total_s'])}"
    known = float(expected["at_least_s"])
    return f"at least {span(known)}" if known >= 1 else "not known yet"


def _price(amount: float | None) -> str:
    return "not known yet" if amount is None else f"about {amount:,.2f}"


def _sentence(text: str) -> str:
    # An option's name stays as it is.
    first = text.split(" ", 1)[0]
    return f"{text}." if "_" in first else f"{text[:1].upper()}{text[1:]}."
