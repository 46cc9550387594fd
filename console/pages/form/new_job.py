"""The form of a new job, from its training type to its start."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from nicegui import background_tasks, ui

from console.errors import ConsoleError
from console.pages.elements import Choice, Field, Tag, panel
from console.pages.form.advanced import AdvancedPart
from console.pages.form.dataset import DatasetPart
from console.pages.form.drafts import OpenDraft
from console.pages.form.labels import LABELS, in_labels, label_of
from console.pages.form.placeholders import with_placeholders
from console.pages.form.preview_panel import PreviewPanel
from console.pages.form.start_bar import StartBar
from console.pages.form.working_copy import archive_of
from console.pages.formatting import TYPE_NAMES
from console.pages.layout import Frame
from console.pages.try_it import TryIt
from console.services.services import Services
from console.views import PresetView, Preview
from tasks.access.api_keys import Scope
from tasks.errors import InvalidJobError, JobError, Problem

_TYPE_NOTES = {
    "FLUX_LORA": "A small file that teaches FLUX.1 a subject or a style. Needs a card of 40 GB or "
    "more, and takes 2 to 3 times as long as SDXL.",
    "SDXL_LORA": "The same for Stable Diffusion XL, faster and on smaller GPUs.",
    "SDXL_TEXTUAL_INVERSION": "A new word for SDXL's text encoders; the model stays unchanged.",
    "SDXL_FINETUNE": "All weights of SDXL's UNet. Makes the largest file, needs the most memory.",
}
"""A note on each training type, in the order of the form."""

_RESOLUTION = "data_loader.resolution"
_PROMPTS, _INTERVAL = "validation_prompts", "validate_every_n_steps"
# Option, help, unit. The form omits options that a training type does not have.
_BASICS = (
    ("trigger_word", "A word for prompts, such as ohwx, put before captions that lack it.", ""),
    ("placeholder_token", "The word to use in prompts, such as <my-cat>.", ""),
    ("initializer_token", "A known word with a similar meaning, such as cat.", ""),
    ("data_loader.caption_preset", "An object, or a style.", ""),
    (_RESOLUTION, "Side of the training images; aspect ratios are kept.", "px"),
    ("train_batch_size", "Images per step. More needs more memory.", ""),
    ("max_train_steps", "Number of weight updates.", "steps"),
    ("{rate}", "Too high breaks the image, too low learns nothing.", ""),
    ("lora_rank_dim", "Higher learns more detail and makes a larger file.", ""),
)
_SAMPLES = (
    (_PROMPTS, "One prompt per line. Images are made from them while the job trains.", ""),
    (_INTERVAL, "A quarter of the steps, unless you change it.", ""),
)
# The form offers these for options of which a job sets exactly one.
_OFFERED = {
    "initial_phrase": "initializer_token",
    "data_loader.caption_templates": "data_loader.caption_preset",
    "max_train_epochs": "max_train_steps",
}
# Without an interval of its own, a job makes this many sets of samples.
_SAMPLE_SETS = 4

_NO_PRESET = "none"
# The preview is updated after a pause of this length.
_PREVIEW_DELAY_S = 0.15


class NewJob:
    """The page.

    Args:
        frame: Frame of the page.
        services: The services.
        opened: The draft that the user fills in.
        presets: All presets.
        save: Saves the draft.
        on_started: Called with the id of the submitted job.
    """

    def __init__(
        self,
        frame: Frame,
        services: Services,
        opened: OpenDraft,
        presets: tuple[PresetView, ...],
        save: Callable[[], Awaitable[None]],
        on_started: Callable[[str], Awaitable[None]],
    ) -> None:
        self._frame, self._services, self._presets = frame, services, presets
        self._opened, self._draft = opened, opened.draft
        self._save, self._on_started = save, on_started
        self._fields: dict[str, Field] = {}
        self._version = 0
        self._tried_to_start = False

    def build(self) -> None:
        """Build the page."""
        with Tag("div", classes="page-head"), Tag("div", classes="page-head-title"):
            Tag("h1", "New job")
            Tag("p", "Upload images and train a model. All options have good defaults.", "muted")
        TryIt(self._frame, self._services)
        with Tag("div", classes="columns"):
            with Tag("div", classes="stack"):
                self._add_type_and_model()
                self._dataset = DatasetPart(
                    self._frame, self._services, self._opened, self._save, lambda: self._changed()
                )
                with panel("Preset", "Options that suit a card and a purpose."):
                    self._preset_box = Tag("div")
                with panel("Basics"), Tag("div", classes="stack"):
                    self._basics = Tag("div", classes="grid-3")
                    self._samples = Tag("div", classes="grid-samples")
                self._advanced = AdvancedPart(self._draft, self._changed, self._fields)
            with Tag("aside", classes="aside", aria_label="This job"):
                self._panel = PreviewPanel(self._go_to, self._label_of)
        self._bar = StartBar(self._start, self._panel.go_to_first_problem)
        self._build_for_type()
        ui.timer(0.05, self._show_first_preview, once=True)

    async def _show_first_preview(self) -> None:
        await self._show_preview()
        await self._dataset.open_images()

    def _changed(self, path: str = "") -> None:
        """Show a change of an option, and update the preview after a pause."""
        if path in self._draft.selectors():
            self._advanced.rebuild()
        self._show_values(except_path=path)
        self._advanced.show_values(except_path=path)
        self._mark_changed()
        self._version += 1
        version = self._version

        async def show_preview_unless_changed() -> None:
            await asyncio.sleep(_PREVIEW_DELAY_S)
            if version == self._version:
                await self._show_preview()

        background_tasks.create(show_preview_unless_changed(), name="preview a draft")

    async def _show_preview(self) -> None:
        version = self._version
        preview, problems = await self._preview(with_placeholders(self._draft, only_dataset=True))
        if problems and all(problem.missing for problem in problems):
            # What is not filled in yet has little say in memory and time.
            preview, _ = await self._preview(with_placeholders(self._draft))
        if version != self._version:
            return  # the preview of a newer version follows
        missing: list[Problem] = []
        if self._tried_to_start:
            problems = [*problems, *self._dataset_problems()]
        else:
            missing = [problem for problem in problems if problem.missing]
            problems = [problem for problem in problems if not problem.missing]
        self._show_problems(problems)
        self._panel.show(preview, problems, self._draft, [_shown_path(it) for it in missing])
        self._show_bar(preview, problems)
        if preview is not None and self._dataset.images.is_stale:
            self._dataset.offer_check()

    async def _start(self) -> None:
        """Submit the job, unless problems stop it."""
        self._tried_to_start = True
        await self._dataset.check_if_stale()
        await self._show_preview()
        if not self._dataset.has_images or self._panel.has_problems:
            self._panel.go_to_first_problem()
            return
        upload = await self._dataset.upload() if self._draft.dataset is None else None
        if upload is None and self._draft.dataset is None:
            return
        try:
            document = self._draft.document(None if upload is None else archive_of(upload))
            job = await self._services.submissions.submit(
                self._frame.allowed(Scope.JOBS_WRITE), document
            )
        except (ConsoleError, JobError) as error:
            problems = [Problem("", str(error))]
            if isinstance(error, InvalidJobError):
                problems = list(error.problems)
            self._show_refusal(problems)
            if upload is not None:
                await self._dataset.images.discard(upload)
            return
        await self._on_started(job.id)

    def _show_refusal(self, problems: list[Problem]) -> None:
        self._show_problems(problems)
        self._panel.show(None, problems, self._draft)
        self._show_bar(None, problems)

    def _show_bar(self, preview: Preview | None, problems: list[Problem]) -> None:
        report = self._opened.report
        images = len(self._opened.images) if report is None else report.images
        self._bar.show(images, preview, len(problems))

    async def _preview(self, document: dict[str, Any]) -> tuple[Preview | None, list[Problem]]:
        try:
            await self._save()
            preview = await self._services.submissions.preview(
                self._frame.allowed(Scope.JOBS_WRITE),
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

    def _dataset_problems(self) -> list[Problem]:
        location = f"training.{self._draft.dataset_path}"
        problems = []
        if not self._dataset.has_images:
            problems.append(Problem(location, "has no images; add some"))
        uncaptioned = len(self._dataset.images.uncaptioned)
        if uncaptioned:
            message = f"has {uncaptioned} images without a caption; write them below"
            problems.append(Problem(location, message))
        errors = self._dataset.images.error_count
        if errors:
            message = f"has {errors} errors; fix or remove the files in the report"
            problems.append(Problem(location, message))
        return problems

    def _add_type_and_model(self) -> None:
        with panel("What to train"), Tag("div", classes="stack"):
            types = [Choice(it, TYPE_NAMES[it], note) for it, note in _TYPE_NOTES.items()]
            Field(
                "Training type", "cards", self._draft.training_type, self._choose_type,
                choices=types, hide_label=True,
            )  # fmt: skip
            with Tag("div", classes="grid-2"):
                self._name = Field(
                    "Name", "text", self._draft.name, self._set_name,
                    help="Name of the result. Letters, digits, - and _.",
                )  # fmt: skip
                self._model_box = Tag("div")

    def _build_for_type(self) -> None:
        """Build the fields that depend on the training type."""
        self._fields.clear()
        self._fields["name"] = self._name
        self._model_box.clear()
        with self._model_box:
            self._add_field("model", "A Hub id, or a folder that the workers see.")
        self._preset_box.clear()
        with self._preset_box:
            of_type = [
                preset for preset in self._presets if preset.type == self._draft.training_type
            ]
            none = Choice(_NO_PRESET, "No preset", "Every option starts from its default.")
            Field(
                "Preset", "cards", self._draft.preset_name or _NO_PRESET,
                self._choose_preset, choices=[*map(_preset_choice, of_type), none],
                hide_label=True,
            )  # fmt: skip
        self._basics.clear()
        rate_path = _rate_path(self._draft.training_type)
        with self._basics:
            for path, help_text, unit in _BASICS:
                self._add_field(path.format(rate=rate_path), help_text, unit)
        self._samples.clear()
        with self._samples:
            for path, help_text, unit in _SAMPLES:
                self._add_field(path, help_text, unit)
        self._advanced.rebuild()
        self._dataset.rebuild()
        self._mark_changed()

    def _add_field(self, path: str, help_text: str, unit: str = "") -> None:
        control = self._draft.control(path)
        if control is None:
            return
        choices = [Choice(choice, choice or "choose") for choice in control.choices]
        kind = "integer" if path == _RESOLUTION else str(control.kind)
        value = control.show(self._draft.value(path))

        def change(typed: Any) -> None:
            if path == _RESOLUTION:
                self._draft.set_resolution(control.read(typed))
            else:
                self._draft.set(path, control.read(typed))
            if path == _PROMPTS:
                self._suit_interval()
            self._changed(path)

        def reset() -> None:
            self._draft.reset(path)
            if path == _RESOLUTION:
                self._draft.set("data_loader.aspect_ratio_buckets", True)
                self._draft.reset("data_loader.aspect_ratio_buckets")
            self._fields[path].show(control.show(self._draft.value(path)))
            self._changed(path)

        label = "Learning rate" if path.endswith("learning_rate") else LABELS[path]
        self._fields[path] = Field(
            label, kind, value, change, on_reset=reset, choices=choices, help=help_text, unit=unit
        )

    def _suit_interval(self) -> None:
        """Make samples of new prompts a few times, unless the user says how often."""
        intervals = (_INTERVAL, "validate_every_n_epochs")
        has_prompts = bool(self._draft.value(_PROMPTS))
        if has_prompts and all(self._draft.value(path) is None for path in intervals):
            steps = self._draft.value("max_train_steps")
            if isinstance(steps, int):
                self._draft.set(_INTERVAL, max(1, steps // _SAMPLE_SETS))
            else:
                self._draft.set(intervals[1], 1)
        elif not has_prompts:
            for path in intervals:
                self._draft.reset(path)

    def _choose_type(self, training_type: str) -> None:
        self._tried_to_start = False
        if training_type not in TYPE_NAMES:
            return  # the browser was manipulated
        of_type = [preset for preset in self._presets if preset.type == training_type]
        best = next((preset.name for preset in of_type if preset.recommended), of_type[0].name)
        self._draft.choose_type(training_type, best)
        self._panel.show_estimating()
        self._build_for_type()
        self._changed()

    def _choose_preset(self, name: str) -> None:
        if name not in {_NO_PRESET, *(preset.name for preset in self._presets)}:
            return  # the browser was manipulated
        self._draft.choose_preset(None if name == _NO_PRESET else name)
        self._show_values()
        self._advanced.rebuild()
        self._changed()

    def _set_name(self, name: str) -> None:
        self._draft.name = name
        self._changed()

    def _show_values(self, except_path: str = "") -> None:
        for path, field in self._fields.items():
            control = self._draft.control(path)
            if path != except_path and control is not None:
                field.show(control.show(self._draft.value(path)))

    def _mark_changed(self) -> None:
        self._advanced.mark(self._advanced.errors)
        for path, field in self._fields.items():
            field.flag(str(field.props["error"]), self._draft.is_own(path))

    def _show_problems(self, problems: list[Problem]) -> None:
        """Show each problem beside its field."""
        messages: dict[str, str] = {}
        for problem in problems:
            path = _shown_path(problem)
            message = in_labels(problem.message)
            messages[path] = "; ".join(filter(None, (messages.get(path), message)))
        for path, field in self._fields.items():
            field.flag(messages.get(path, ""), self._draft.is_own(path))
        self._advanced.mark(messages)
        self._dataset.mark(messages)

    def _label_of(self, location: str) -> str:
        """Return the label of a problem's field."""
        field = self._fields.get(location.removeprefix("training."))
        return label_of(location) if field is None else field.label

    def _go_to(self, location: str) -> None:
        """Scroll to the field of a problem."""
        path = location.removeprefix("training.")
        if path in self._fields:
            self._fields[path].focus()
        elif not self._advanced.go_to(path):
            self._dataset.focus()


def _shown_path(problem: Problem) -> str:
    """Return the path of the field that a problem is shown beside."""
    path = problem.location.removeprefix("training.")
    return _OFFERED.get(path, path) if problem.missing else path


def _rate_path(training_type: str) -> str:
    """Return the option that users mean by the learning rate."""
    is_flux = "FLUX" in training_type
    return "transformer_learning_rate" if is_flux else "optimizer.learning_rate"


def _preset_choice(view: PresetView) -> Choice:
    tags = [f"runs in the {view.memory_class.removesuffix('gb')} GB class"]
    if view.emulated:
        tags.append("emulated")
    if view.recommended:
        tags.append("recommended")
    elif not view.served:
        tags.append("no such GPU")
    note = f"{view.summary}. About {view.needed_gib:.0f} GiB."
    return Choice(view.name, view.title, note, tuple(tags), view.name)
