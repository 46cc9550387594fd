"""Every option of a training type, in groups, with a search."""

from collections.abc import Callable, Collection, Mapping
from typing import Any

from console.pages.elements import Choice, Field, Tag, button
from console.pages.form.controls import GROUPS, Control, Kind, label_of
from console.pages.form.draft import Draft


class AdvancedPart:
    """The advanced options, a disclosure whose fields are built when it is opened.

    Args:
        draft: The draft.
        on_changed: Called with the path of a changed option.
        other_paths: Returns the options that the form shows elsewhere.
    """

    def __init__(
        self,
        draft: Draft,
        on_changed: Callable[[str], None],
        other_paths: Callable[[], Collection[str]],
    ) -> None:
        self._draft, self._on_changed, self._other_paths = draft, on_changed, other_paths
        self._fields: dict[str, Field] = {}
        self._controls: dict[str, Control] = {}
        self._groups: list[tuple[Tag, list[str]]] = []
        self._search, self._changed_only, self._is_open = "", False, False
        self.errors: Mapping[str, str] = {}
        self._box = Tag("details", classes="panel")
        with self._box:
            with Tag("summary"):
                Tag("h2", "Advanced options")
                self._count = Tag("span", "", "muted small")
            self._body = Tag("div")
        self._box.on("toggle", self._toggled, js_handler="(e) => emit(e.target.open)")

    def rebuild(self) -> None:
        """Show the options of the current training type and selections."""
        self._body.clear()
        self._fields.clear()
        self._groups.clear()
        if self._is_open:
            with self._body:
                self._build()
        self.mark(self.errors)

    def show_values(self, except_path: str) -> None:
        """Show values that changed together with another option."""
        paths = {control.path for control in self._draft.controls()}
        for path, field in self._fields.items():
            if path != except_path and path in paths:
                field.show(self._value(self._controls[path]))

    def mark(self, errors: Mapping[str, str]) -> None:
        """Show errors by option path, and which values differ from the preset."""
        self.errors = errors
        for path, field in self._fields.items():
            field.flag(errors.get(path, ""), self._draft.is_own(path))
        paths = [control.path for control in self._visible_controls()]
        changed = sum(self._draft.is_own(path) for path in paths)
        invalid = sum(path in errors for path in paths)
        summary = f"{len(paths)} options, {changed} changed"
        self._count.update_text(summary + (f", {invalid} invalid" if invalid else ""))

    def go_to(self, path: str) -> bool:
        """Open the options and scroll to one; return whether the option is here."""
        if path not in {control.path for control in self._visible_controls()}:
            return False
        if not self._is_open:
            self._open()
        self._search, self._changed_only = "", False
        self.rebuild()
        self._fields[path].focus()
        return True

    def _toggled(self, event: Any) -> None:
        if bool(event.args) != self._is_open:
            self._is_open = bool(event.args)
            self.rebuild()

    def _open(self) -> None:
        self._is_open = True
        self._box.set_attribute("open", True)

    def _build(self) -> None:
        with Tag("div", classes="filters filters-options"):
            Field(
                "Find an option", "text", self._search, self._set_search,
                placeholder="for example rate or cache",
            )  # fmt: skip
            with Tag("div", classes="filters-switch"):
                Field("Changed only", "switch", self._changed_only, self._set_changed_only)
        controls = self._visible_controls()
        for group in GROUPS:
            of_group = [control for control in controls if control.group == group]
            if not of_group:
                continue
            section = Tag("section", classes="options-group")
            with section:
                Tag("h3", group)
                with Tag("div", classes="grid-2"):
                    for control in of_group:
                        self._add_field(control)
            self._groups.append((section, [control.path for control in of_group]))
        self._no_match = Tag("p", "No options match.", "muted options-group")
        with self._no_match:
            button("Show all", "small").on("click", lambda: self._set_search(""))
        self._filter()

    def _add_field(self, control: Control) -> None:
        def change(typed: Any) -> None:
            self._draft.set(control.path, control.read(typed))
            self._on_changed(control.path)

        def reset() -> None:
            self._draft.reset(control.path)
            self._fields[control.path].show(self._value(control))
            self._on_changed(control.path)

        self._controls[control.path] = control
        self._fields[control.path] = Field(
            control.path,
            str(control.kind),
            self._value(control),
            change,
            on_reset=reset,
            choices=[Choice(choice, label_of(choice)) for choice in control.choices],
            help=f"{control.help} {_type_and_default(control)}",
        )

    def _value(self, control: Control) -> str | bool:
        return control.show(self._draft.value(control.path))

    def _set_search(self, text: str) -> None:
        self._search = text
        self._filter()

    def _set_changed_only(self, changed_only: bool) -> None:
        self._changed_only = changed_only
        self._filter()

    def _filter(self) -> None:
        """Hide the options that do not match."""
        words = self._search.lower().split()
        for path, field in self._fields.items():
            text = f"{path} {self._controls[path].help}".lower().replace("_", " ") + path
            matches = all(word in text for word in words)
            field.set_visibility(matches and (not self._changed_only or self._draft.is_own(path)))
        for section, paths in self._groups:
            section.set_visibility(any(self._fields[path].visible for path in paths))
        self._no_match.set_visibility(not any(section.visible for section, _ in self._groups))

    def _visible_controls(self) -> list[Control]:
        other_paths, dataset = self._other_paths(), f"{self._draft.dataset_path}."
        return [
            control
            for control in self._draft.controls()
            if control.path not in other_paths
            and not control.path.startswith(dataset)
            and not (control.kind == Kind.CHOICE and len(control.choices) < 2)
        ]


def _type_and_default(control: Control) -> str:
    default = (
        "required"
        if control.required
        else f"default {label_of(str(control.show(control.default)))}"
    )
    if control.kind == Kind.SWITCH:
        default = f"default {'on' if control.default else 'off'}"
    if control.kind in (Kind.CHOICE, Kind.SWITCH):
        return f"({default})"
    if control.kind == Kind.LINES:
        return "(one per line)"
    return f"({control.type}, {default})"
