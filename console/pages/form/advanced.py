"""Every option of a training type, in folded groups, with a search."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from console.pages.elements import Choice, Disclosure, Field, Tag, button
from console.pages.form.controls import GROUPS, Control, Kind, label_of_choice
from console.pages.form.draft import Draft
from console.pages.form.labels import LABELS


class AdvancedPart:
    """The advanced options, whose fields are built when their group is opened.

    Args:
        draft: The draft.
        on_changed: Called with the path of a changed option.
        other_fields: The fields of the options that the form shows elsewhere, by path.
    """

    def __init__(
        self,
        draft: Draft,
        on_changed: Callable[[str], None],
        other_fields: Mapping[str, Field],
    ) -> None:
        self._draft, self._on_changed, self._other_fields = draft, on_changed, other_fields
        self._fields: dict[str, Field] = {}
        self._groups: dict[str, _Group] = {}
        self._search, self._changed_only = "", False
        self.errors: Mapping[str, str] = {}
        self._box = Disclosure("Advanced options", self.rebuild, "panel")

    def rebuild(self) -> None:
        """Show the options of the current training type and selections."""
        opened = {name for name, group in self._groups.items() if group.box.is_open}
        self._box.body.clear()
        self._fields.clear()
        self._groups.clear()
        if self._box.is_open:
            with self._box.body:
                self._build()
            for name in opened & set(self._groups):
                self._groups[name].box.open()
            self._filter()
        self.mark(self.errors)

    def show_values(self, except_path: str) -> None:
        """Show values that changed together with another option."""
        for control in self._draft.controls():
            field = self._fields.get(control.path)
            if field is not None and control.path != except_path:
                field.show(self._value(control))

    def mark(self, errors: Mapping[str, str]) -> None:
        """Show errors by option path, and which values differ from the preset."""
        self.errors = errors
        for path, field in self._fields.items():
            field.flag(errors.get(path, ""), self._draft.is_own(path))
        self._box.hint(self._counts([control.path for control in self._visible_controls()]))
        for group in self._groups.values():
            group.box.hint(self._counts([control.path for control in group.controls]))

    def go_to(self, path: str) -> bool:
        """Open the options and scroll to one; return whether the option is here."""
        control = next((it for it in self._visible_controls() if it.path == path), None)
        if control is None:
            return False
        self._search, self._changed_only = "", False
        self._box.open()
        self.rebuild()
        self._groups[control.group].box.open()
        self._fields[path].focus()
        return True

    def _counts(self, paths: Collection[str]) -> str:
        changed = sum(self._draft.is_own(path) for path in paths)
        invalid = sum(path in self.errors for path in paths)
        parts = [f"{len(paths)} option{'' if len(paths) == 1 else 's'}"]
        parts += [f"{changed} changed"] if changed else []
        parts += [f"{invalid} to fix"] if invalid else []
        return ", ".join(parts)

    def _build(self) -> None:
        with Tag("div", classes="filters filters-options"):
            Field(
                "Find an option", "text", self._search, self._set_search,
                placeholder="for example rate or cache",
            )  # fmt: skip
            with Tag("div", classes="filters-switch"):
                Field("Changed only", "switch", self._changed_only, self._set_changed_only)
        self._elsewhere = Tag("p", "", "small muted options-elsewhere")
        controls = self._visible_controls()
        for name in GROUPS:
            of_group = [control for control in controls if control.group == name]
            if of_group:
                self._groups[name] = self._add_group(name, of_group)
        self._no_match = Tag("p", "No options match.", "muted options-group")
        with self._no_match:
            button("Show all", "small").on("click", lambda: self._set_search(""))

    def _add_group(self, name: str, controls: list[Control]) -> "_Group":
        def build() -> None:
            if not box.body.default_slot.children:
                with box.body, Tag("div", classes="grid-2"):
                    for control in controls:
                        self._add_field(control)

        box = Disclosure(name, build, "options-group", level=3)
        return _Group(box, controls)

    def _add_field(self, control: Control) -> None:
        def change(typed: Any) -> None:
            self._draft.set(control.path, control.read(typed))
            self._on_changed(control.path)

        def reset() -> None:
            self._draft.reset(control.path)
            self._fields[control.path].show(self._value(control))
            self._on_changed(control.path)

        field = self._fields[control.path] = Field(
            LABELS[control.path],
            str(control.kind),
            self._value(control),
            change,
            on_reset=reset,
            choices=[Choice(choice, label_of_choice(choice)) for choice in control.choices],
            help=f"{control.help} {_type_and_default(control)}",
            name=control.path,
        )
        field.flag(self.errors.get(control.path, ""), self._draft.is_own(control.path))

    def _value(self, control: Control) -> str | bool:
        return control.show(self._draft.value(control.path))

    def _set_search(self, text: str) -> None:
        self._search = text
        if not text and not self._changed_only:
            for group in self._groups.values():
                group.box.close()
        self._filter()

    def _set_changed_only(self, changed_only: bool) -> None:
        self._changed_only = changed_only
        self._filter()

    def _filter(self) -> None:
        """Hide the options that do not match, and open the groups of those that do."""
        words = self._search.lower().split()
        is_filtering = bool(words) or self._changed_only
        for name, group in self._groups.items():
            found = {it.path for it in group.controls if self._matches(it, f"{name} ", words)}
            if is_filtering and found:
                group.box.open()
            for control in group.controls:
                if control.path in self._fields:
                    self._fields[control.path].set_visibility(control.path in found)
            group.box.set_visibility(bool(found))
        self._no_match.set_visibility(not any(it.box.visible for it in self._groups.values()))
        self._show_elsewhere(words)

    def _matches(self, control: Control, section: str, words: list[str]) -> bool:
        """Return whether all words are in an option's label, name, help or section."""
        text = f"{section}{LABELS[control.path]} {control.path} {control.help}".lower()
        text = f"{text} {text.replace('_', ' ')}"
        is_shown = not self._changed_only or self._draft.is_own(control.path)
        return is_shown and all(word in text for word in words)

    def _show_elsewhere(self, words: list[str]) -> None:
        """Offer the options above that match, too."""
        self._elsewhere.clear()
        found = [
            control
            for control in self._draft.controls()
            if words and control.path in self._other_fields and self._matches(control, "", words)
        ]
        if not found:
            return
        with self._elsewhere:
            Tag("span", "Above: ")
            for control in found:
                field = self._other_fields[control.path]
                Tag("button", field.label, "reset", type="button").on("click", field.focus)

    def _visible_controls(self) -> list[Control]:
        dataset = f"{self._draft.dataset_path}."
        return [
            control
            for control in self._draft.controls()
            if control.path not in self._other_fields
            and not control.path.startswith(dataset)
            and not (control.kind == Kind.CHOICE and len(control.choices) < 2)
        ]


@dataclass(frozen=True)
class _Group:
    """A folded group of options."""

    box: Disclosure
    controls: list[Control]


def _type_and_default(control: Control) -> str:
    default = (
        "required"
        if control.required
        else f"default {label_of_choice(str(control.show(control.default)))}"
    )
    if control.kind == Kind.SWITCH:
        default = f"default {'on' if control.default else 'off'}"
    if control.kind in (Kind.CHOICE, Kind.SWITCH):
        return f"({default})"
    if control.kind == Kind.LINES:
        return "(one per line)"
    return f"({control.type}, {default})"
