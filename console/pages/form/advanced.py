"""Every option of a training type, by what it is about, with a box to find one."""

from collections.abc import Callable, Collection, Mapping
from typing import Any

from console.pages.field import Choice, Field
from console.pages.form.controls import GROUPS, Control, Kind
from console.pages.form.draft import Draft
from console.pages.markup import Tag, button


class AdvancedPart:
    """The part of the form that opens. Its fields are made when it does.

    Args:
        draft: What is filled in.
        on_changed: Called with the option that was.
        elsewhere: The options that the form shows above.
    """

    def __init__(
        self,
        draft: Draft,
        on_changed: Callable[[str], None],
        elsewhere: Callable[[], Collection[str]],
    ) -> None:
        self._draft, self._on_changed, self._elsewhere = draft, on_changed, elsewhere
        self._fields: dict[str, Field] = {}
        self._controls: dict[str, Control] = {}
        self._groups: list[tuple[Tag, list[str]]] = []
        self._filter, self._only_own, self._is_open = "", False, False
        self.errors: Mapping[str, str] = {}
        self._box = Tag("details", classes="panel")
        with self._box:
            with Tag("summary"):
                Tag("h2", "Advanced options")
                self._count = Tag("span", "", "muted small")
            self._body = Tag("div")
        self._box.on("toggle", self._toggled, js_handler="(e) => emit(e.target.open)")

    def rebuild(self) -> None:
        """Show the options that there are now."""
        self._body.clear()
        self._fields.clear()
        self._groups.clear()
        if self._is_open:
            with self._body:
                self._build()
        self.mark(self.errors)

    def show_values(self, but: str) -> None:
        """Show the values that changed with another one."""
        there = {it.path for it in self._draft.controls()}
        for path, field in self._fields.items():
            if path != but and path in there:
                field.show(self._shown(self._controls[path]))

    def mark(self, errors: Mapping[str, str]) -> None:
        """Show what is wrong, and which values are the job's own."""
        self.errors = errors
        for path, field in self._fields.items():
            field.flag(errors.get(path, ""), self._draft.is_own(path))
        there = [it.path for it in self._all()]
        own = [it for it in there if self._draft.is_own(it)]
        wrong = [it for it in there if it in errors]
        told = f"{len(there)} options, {len(own)} changed"
        self._count.say(told + (f", {len(wrong)} to mend" if wrong else ""))

    def go_to(self, path: str) -> bool:
        """Open, and bring an option into view; whether it is here."""
        if path not in {it.path for it in self._all()}:
            return False
        if not self._is_open:
            self._open()
        self._filter, self._only_own = "", False
        self.rebuild()
        self._fields[path].focus()
        return True

    def _toggled(self, event: Any) -> None:
        if bool(event.args) != self._is_open:
            self._is_open = bool(event.args)
            self.rebuild()

    def _open(self) -> None:
        self._is_open = True
        self._box.have("open", True)

    def _build(self) -> None:
        with Tag("div", classes="filters", style="margin: 20px 0 0"):
            Field(
                "Find an option",
                "text",
                self._filter,
                self._find,
                placeholder="such as rate, cache",
            )
            with Tag("div", style="padding-bottom: 6px; flex: none"):
                Field("Changed only", "switch", self._only_own, self._show_own)
        there = self._all()
        for group in GROUPS:
            found = [it for it in there if it.group == group]
            if not found:
                continue
            part = Tag("section", classes="options-group")
            with part:
                Tag("h3", group)
                with Tag("div", classes="grid-2"):
                    for control in found:
                        self._add(control)
            self._groups.append((part, [it.path for it in found]))
        self._nothing = Tag("p", "No option is called so.", "muted options-group")
        with self._nothing:
            button("Show all", "small").on("click", lambda: self._find(""))
        self._sift()

    def _add(self, control: Control) -> None:
        def told(typed: Any) -> None:
            self._draft.set(control.path, control.read(typed))
            self._on_changed(control.path)

        def reset() -> None:
            self._draft.reset(control.path)
            self._fields[control.path].show(self._shown(control))
            self._on_changed(control.path)

        self._controls[control.path] = control
        self._fields[control.path] = Field(
            control.path,
            str(control.kind),
            self._shown(control),
            told,
            on_reset=reset,
            choices=[Choice(it, it or "none") for it in control.choices],
            help=f"{control.help} {_told_of(control)}",
        )

    def _shown(self, control: Control) -> str | bool:
        return control.show(self._draft.value(control.path))

    def _find(self, text: str) -> None:
        self._filter = text
        self._sift()

    def _show_own(self, only_own: bool) -> None:
        self._only_own = only_own
        self._sift()

    def _sift(self) -> None:
        """Hide what was not asked for."""
        words = self._filter.lower().split()
        for path, field in self._fields.items():
            text = f"{path} {self._controls[path].help}".lower().replace("_", " ") + path
            fits = all(word in text for word in words)
            field.set_visibility(fits and (not self._only_own or self._draft.is_own(path)))
        for part, paths in self._groups:
            part.set_visibility(any(self._fields[it].visible for it in paths))
        self._nothing.set_visibility(not any(part.visible for part, _ in self._groups))

    def _all(self) -> list[Control]:
        elsewhere, images = self._elsewhere(), f"{self._draft.dataset_path}."
        return [
            it
            for it in self._draft.controls()
            if it.path not in elsewhere
            and not it.path.startswith(images)
            and not (it.kind == Kind.CHOICE and len(it.choices) < 2)
        ]


def _told_of(control: Control) -> str:
    default = (
        "required" if control.required else f"default {control.show(control.default) or 'none'}"
    )
    if control.kind == Kind.SWITCH:
        default = f"default {'on' if control.default else 'off'}"
    if control.kind in (Kind.CHOICE, Kind.SWITCH):
        return f"({default})"
    if control.kind == Kind.LINES:
        return "(one a line)"
    return f"({control.type}, {default})"
