"""The form of a new job, from its type to its start."""

import asyncio
from collections.abc import Callable
from typing import Any

from nicegui import background_tasks, ui

from console.errors import ConsoleError
from console.pages.field import Choice, Field
from console.pages.form.advanced import AdvancedPart
from console.pages.form.basics import (
    BASICS,
    ORDER,
    RESOLUTION,
    TYPE_NOTES,
    preset_choice,
    rate_path,
)
from console.pages.form.dataset import DatasetPart
from console.pages.form.draft import Draft
from console.pages.form.drafts import Begun
from console.pages.form.preview_panel import PreviewPanel
from console.pages.formatting import TYPE_NAMES
from console.pages.layout import Frame
from console.pages.markup import Tag, panel
from console.services.services import Services
from console.views import PresetView, Preview
from tasks.errors import InvalidJobError, JobError, Problem

_NO_PRESET = "none"
# What was changed rests for as long before it is looked at.
_REST_S = 0.15
# So that the estimate does not wait for images. Nobody fetches it.
_STAND_IN = {"type": "ARCHIVE", "archive": "https://example.org/images.zip"}


class NewJob:
    """The page.

    Args:
        frame: The page around it.
        service: Knows the fleet.
        begun: The draft that is filled in.
        presets: All presets.
        on_started: Called with the id of the job that was started.
    """

    def __init__(
        self,
        frame: Frame,
        services: Services,
        begun: Begun,
        presets: tuple[PresetView, ...],
        on_started: Callable[[str], None],
    ) -> None:
        self._frame, self._services, self._begun, self._presets = frame, services, begun, presets
        self._on_started = on_started
        self._fields: dict[str, Field] = {}
        self._version = 0
        self._insists = False

    @property
    def draft(self) -> Draft:
        """What was filled in so far."""
        return self._begun.draft

    def build(self) -> None:
        """Make the page."""
        with Tag("div", classes="page-head"), Tag("div", classes="page-head-title"):
            Tag("h1", "New job")
            Tag(
                "p",
                "Images in, a trained file out. What you leave alone has a good value.",
                "muted",
            )
        with Tag("div", classes="columns"):
            with Tag("div", classes="stack"):
                self._add_type_and_model()
                self._presets_panel = panel("Memory preset", "Values that fit a class of GPUs.")
                with self._presets_panel:
                    self._preset_box = Tag("div")
                with panel("Basics"):
                    self._basics = Tag("div", classes="grid-3")
                self._advanced = AdvancedPart(self.draft, self.changed, self._fields.keys)
                self._dataset = DatasetPart(
                    self._frame, self._services, self._begun, lambda: self.changed()
                )
            with Tag("aside", classes="aside", aria_label="This job"):
                self._outlook = PreviewPanel(self._frame, self.start, self._go_to)
        self._build_for_type()
        ui.timer(0.05, self._first_look, once=True)

    async def _first_look(self) -> None:
        await self.look()
        await self._dataset.find()

    def changed(self, path: str = "") -> None:
        """Something was filled in: show what becomes of it once more is not said for a moment."""
        if path in self.draft.selectors():
            self._advanced.rebuild()
        self._show_values(but=path)
        self._advanced.show_values(but=path)
        self._mark_own()
        self._version += 1
        version = self._version

        async def look_unless_changed() -> None:
            await asyncio.sleep(_REST_S)
            if version == self._version:
                await self.look()

        background_tasks.create(look_unless_changed(), name="look at a draft")

    async def look(self) -> None:
        """Show what would become of the job as it is now."""
        version, document = self._version, self.draft.document()
        images = self.draft.dataset is not None
        if not images:
            _set_dataset(document, self.draft.dataset_path)
        preview, problems = await self._asked(document)
        if version != self._version:
            return  # a newer one is on its way
        if not images and self._insists:
            problems = [
                *problems,
                Problem(f"training.{self.draft.dataset_path}", "add images first"),
            ]
        if self._insists and self._dataset.images.errors:
            problem = f"has {self._dataset.images.errors} errors; mend or remove what is named"
            problems = [*problems, Problem(f"training.{self.draft.dataset_path}", problem)]
        still_open = [] if self._insists else [it for it in problems if _is_open(it)]
        problems = [it for it in problems if it not in still_open]
        self._show_problems(problems)
        named = [it.location.removeprefix("training.") for it in still_open]
        self._outlook.show(preview, problems, self.draft, named)
        if preview is not None and self._dataset.images.is_stale:
            self._dataset.offer_check()

    async def start(self) -> None:
        """Start the job, unless something is to be mended first."""
        self._insists = True
        await self._dataset.settle()
        await self.look()
        if self.draft.dataset is None or self._outlook.has_faults:
            self._outlook.go_to_first_fault()
            return
        try:
            job = await self._services.submissions.submit(self._frame.caller, self.draft.document())
        except InvalidJobError as error:
            self._show_problems(list(error.problems))
            self._outlook.show(None, list(error.problems), self.draft)
            return
        except (ConsoleError, JobError) as error:
            self._outlook.show(None, [Problem("", str(error))], self.draft)
            return
        self._on_started(job.id)

    async def _asked(self, document: dict[str, Any]) -> tuple[Preview | None, list[Problem]]:
        try:
            preview = await self._services.submissions.preview(
                self._frame.caller,
                document,
                check_dataset=False,
                sizes=self._dataset.images.sizes,
            )
        except InvalidJobError as error:
            return None, list(error.problems)
        except ConsoleError as error:
            return None, list(error.problems) or [Problem("", error.message)]
        except JobError as error:
            return None, [Problem("", str(error))]
        return preview, []

    def _add_type_and_model(self) -> None:
        with panel("What to train"), Tag("div", classes="stack"):
            types = [Choice(it, TYPE_NAMES[it], TYPE_NOTES[it]) for it in ORDER]
            Field(
                "Training type", "cards", self.draft.training_type, self._choose_type,
                choices=types, hide_label=True,
            )  # fmt: skip
            with Tag("div", classes="grid-2"):
                self._name = Field(
                    "Name", "text", self.draft.name, self._give_name,
                    help="What the file will be called. Letters, digits, - and _.",
                )  # fmt: skip
                self._model_box = Tag("div")

    def _build_for_type(self) -> None:
        """What another training type has other options for."""
        self._fields.clear()
        self._fields["name"] = self._name
        self._model_box.clear()
        with self._model_box:
            self._add_option("model", "Base model", "A Hub id, or a folder that the workers see.")
        self._preset_box.clear()
        with self._preset_box:
            fitting = [it for it in self._presets if it.type == self.draft.training_type]
            nothing = Choice(_NO_PRESET, "No preset", "Every option starts from its default.")
            Field(
                "Memory preset", "cards", self.draft.preset_name or _NO_PRESET,
                self._choose_preset, choices=[*map(preset_choice, fitting), nothing],
                hide_label=True,
            )  # fmt: skip
        self._basics.clear()
        with self._basics:
            for path, label, sentence, unit in BASICS:
                self._add_option(path.format(rate=rate_path(self.draft)), label, sentence, unit)
        self._advanced.rebuild()
        self._dataset.rebuild()
        self._mark_own()

    def _add_option(self, path: str, label: str, sentence: str, unit: str = "") -> None:
        control = self.draft.control(path)
        if control is None:
            return
        choices = [Choice(it, it or "choose") for it in control.choices]
        kind = "integer" if path == RESOLUTION else str(control.kind)
        shown = control.show(self.draft.value(path))

        def told(typed: Any) -> None:
            if path == RESOLUTION:
                self.draft.set_resolution(control.read(typed))
            else:
                self.draft.set(path, control.read(typed))
            self.changed(path)

        def reset() -> None:
            self.draft.reset(path)
            if path == RESOLUTION:
                self.draft.set("data_loader.aspect_ratio_buckets", True)
                self.draft.reset("data_loader.aspect_ratio_buckets")
            self._fields[path].show(control.show(self.draft.value(path)))
            self.changed(path)

        self._fields[path] = Field(
            label, kind, shown, told, on_reset=reset, choices=choices, help=sentence, unit=unit
        )

    def _choose_type(self, training_type: str) -> None:
        self._insists = False
        if training_type not in TYPE_NAMES:
            return  # no browser of ours says so
        of_type = [it for it in self._presets if it.type == training_type]
        best = next((it.name for it in of_type if it.recommended), of_type[0].name)
        self.draft.choose_type(training_type, best)
        self._build_for_type()
        self.changed()

    def _choose_preset(self, name: str) -> None:
        if name not in {_NO_PRESET, *(it.name for it in self._presets)}:
            return
        self.draft.choose_preset(None if name == _NO_PRESET else name)
        self._show_values()
        self._advanced.rebuild()
        self.changed()

    def _give_name(self, name: str) -> None:
        self.draft.name = name
        self.changed()

    def _show_values(self, but: str = "") -> None:
        for path, field in self._fields.items():
            control = self.draft.control(path)
            if path != but and control is not None:
                field.show(control.show(self.draft.value(path)))

    def _mark_own(self) -> None:
        self._advanced.mark(self._advanced.errors)
        for path, field in self._fields.items():
            field.flag(str(field.props["error"]), self.draft.is_own(path))

    def _show_problems(self, problems: list[Problem]) -> None:
        """Each fault beside its field."""
        told: dict[str, str] = {}
        for problem in problems:
            path = problem.location.removeprefix("training.")
            told[path] = "; ".join(filter(None, (told.get(path), problem.message)))
        for path, field in self._fields.items():
            field.flag(told.get(path, ""), self.draft.is_own(path))
        self._advanced.mark(told)
        self._dataset.mark(told)

    def _go_to(self, where: str) -> None:
        """Bring the field of a fault into view."""
        path = where.removeprefix("training.")
        if path in self._fields:
            self._fields[path].focus()
        elif not self._advanced.go_to(path):
            self._dataset.focus()


def _set_dataset(document: dict[str, Any], path: str) -> None:
    part = document["training"]
    *folders, last = path.split(".")
    for name in folders:
        part = part.setdefault(name, {})
    part[last] = dict(_STAND_IN)


def _is_open(problem: Problem) -> bool:
    """Whether something was only not filled in yet; nobody is blamed before the start."""
    return problem.message.startswith(("is missing", "set exactly one of"))
