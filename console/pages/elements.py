"""HTML elements of the pages: plain tags, panels, buttons, and labelled form fields.

Text is always text: what a user wrote is never interpreted as HTML.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from nicegui.element import Element
from nicegui.elements.mixins.text_element import TextElement
from nicegui.events import GenericEventArguments

from console.pages.formatting import PART_NAMES


class Tag(TextElement):
    """An HTML element.

    Args:
        name: Such as ``section``.
        text: The element's text.
        classes: CSS classes, separated by spaces.
        **attributes: HTML attributes, with ``_`` for ``-``; None omits one.
    """

    def __init__(self, name: str, text: str = "", classes: str = "", **attributes: Any) -> None:
        super().__init__(tag=name, text=text)
        self.classes(classes)
        for attribute, value in attributes.items():
            self.set_attribute(attribute, value)

    def set_attribute(self, attribute: str, value: Any) -> None:
        """Set an attribute; None removes it."""
        name = attribute.rstrip("_").replace("_", "-")
        if value is None:
            self.props.pop(name, None)
        elif self.props.get(name) != value:
            self.props[name] = value

    def update_text(self, text: str) -> None:
        """Show another text; nothing is sent if it is the same."""
        if self.text != text:
            self.text = text

    def set_classes(self, classes: str) -> None:
        """Replace all CSS classes; nothing is sent if they are the same."""
        if self.classes != classes.split():
            self.classes(replace=classes)


def panel(title: str, hint: str = "", *, level: int = 2) -> Tag:
    """Add a titled panel, which is a region for screen readers, and return it."""
    section = Tag("section", classes="panel")
    with section, Tag("div", classes="panel-head"):
        heading = Tag(f"h{level}", title)
        if hint:
            Tag("p", hint, "muted small")
    section.set_attribute("aria_labelledby", heading.html_id)
    return section


def button(text: str, variants: str = "", **attributes: Any) -> Tag:
    """Add a button; ``variants`` are some of primary, danger, quiet, small, wide."""
    classes = " ".join(["btn", *(f"btn-{variant}" for variant in variants.split())])
    return Tag("button", text, classes, type="button", **attributes)


def fact(name: str, value: str = "") -> Tag:
    """Add a row to a ``dl.facts`` and return the element of its value."""
    Tag("dt", name)
    return Tag("dd", value)


class LocalTime(Element, component="local_time.js"):
    """A moment in the reader's time zone, which the server does not know.

    Args:
        moment: The moment.
        kind: ``moment`` with UTC beside it, ``clock`` for the time of day, or ``elapsed`` for the
            time since then.
    """

    def __init__(self, moment: datetime, kind: str = "moment") -> None:
        super().__init__()
        self._props["iso"] = moment.astimezone(UTC).isoformat()
        self._props["kind"] = kind

    def show(self, moment: datetime) -> None:
        """Show another moment; nothing is sent if it is the same."""
        iso = moment.astimezone(UTC).isoformat()
        if self._props["iso"] != iso:
            self._props["iso"] = iso


def memory_bar(parts: dict[str, float], available_gib: float) -> None:
    """Add a bar of GPU memory by part, with a legend."""
    visible = [(i, name, gib) for i, (name, gib) in enumerate(parts.items(), 1) if gib >= 0.05]
    total_gib = max(available_gib, sum(parts.values()))
    with Tag("div", classes="bar", aria_hidden="true"):
        for number, _, gib in visible:
            width = f"width: {100 * gib / total_gib:.2f}%"
            Tag("span", "", f"bar-part part-{number}", style=width)
    with Tag("ul", classes="legend"):
        for number, name, gib in visible:
            with Tag("li", classes="legend-row"):
                Tag("span", "", f"legend-mark part-{number}", aria_hidden="true")
                Tag("span", PART_NAMES.get(name, name))
                Tag("span", f"{gib:.1f} GiB", "right")


class Disclosure(Tag):
    """A heading that opens and closes what is below it.

    Args:
        title: The heading.
        on_opened: Called when it opens.
        classes: CSS classes, separated by spaces.
        level: Level of the heading.
    """

    def __init__(
        self, title: str, on_opened: Callable[[], Any], classes: str = "", level: int = 2
    ) -> None:
        super().__init__("details", classes=classes)
        self._on_opened, self.is_open = on_opened, False
        with self, Tag("summary"):
            Tag(f"h{level}", title)
            self._hint = Tag("span", "", "muted small")
        with self:
            self.body = Tag("div", classes="disclosed")
        self.on("toggle", self._toggled, js_handler="(e) => emit(e.target.open)")

    def hint(self, text: str) -> None:
        """Show a text beside the heading."""
        self._hint.update_text(text)

    def open(self) -> None:
        """Open it."""
        if not self.is_open:
            self.is_open = True
            # The attribute belongs to the browser, in which the user changes it, too.
            self.run_method("setAttribute", "open", "")
            self._on_opened()

    def close(self) -> None:
        """Close it."""
        if self.is_open:
            self.is_open = False
            self.run_method("removeAttribute", "open")

    def _toggled(self, event: GenericEventArguments) -> None:
        is_open = bool(event.args)
        if is_open != self.is_open:
            self.is_open = is_open
            if is_open:
                self._on_opened()


@dataclass(frozen=True)
class Choice:
    """An option of a field.

    Attributes:
        value: The value.
        label: Its label.
        note: A sentence about it.
        tags: Short tags beside the label.
        name: The name of the value in job files, shown small.
    """

    value: str
    label: str
    note: str = ""
    tags: tuple[str, ...] = ()
    name: str = ""


class Field(Element, component="field.js"):
    """A labelled native control with help and error, usable by keyboard and screen reader.

    Args:
        label: The label.
        kind: ``text``, ``integer``, ``number``, ``lines``, ``json``, ``switch``, ``choice`` or
            ``cards``.
        value: The initial value.
        on_change: Called with a value that the user gave, once typing pauses.
        on_reset: Called when the user resets the value; None for a field without reset.
        choices: Options of ``choice`` and ``cards``.
        help: A sentence about the field.
        unit: Unit, shown after the value.
        placeholder: Shown while the field is empty.
        suggestions: Offered while typing.
        hide_label: Whether only screen readers get the label.
        name: The name of the option in job files, shown small beside the label.
    """

    def __init__(
        self,
        label: str,
        kind: str,
        value: str | bool,
        on_change: Callable[[Any], Any],
        *,
        on_reset: Callable[[], Any] | None = None,
        choices: Sequence[Choice] = (),
        help: str = "",
        unit: str = "",
        placeholder: str = "",
        suggestions: Sequence[str] = (),
        hide_label: bool = False,
        name: str = "",
    ) -> None:
        super().__init__()
        self.label = label
        self._props.update(
            label=label, name=name, kind=kind, value=value, version=0,
            choices=_documents(choices), help=help, unit=unit, placeholder=placeholder,
            suggestions=list(suggestions),
            hideLabel=hide_label, error="", changed=False,
        )  # fmt: skip
        self._on_change = on_change
        self.on("change", self._changed, [None])
        if on_reset is not None:
            self.on("reset", lambda _: on_reset(), [])

    def show(self, value: str | bool) -> None:
        """Show a value that the user did not give."""
        if value != self._props["value"]:
            self._props["value"] = value
            self._props["version"] = int(self._props["version"]) + 1

    def flag(self, error: str = "", changed: bool = False) -> None:
        """Show the value's error, and whether the value differs from its default."""
        self._set_prop("error", error)
        self._set_prop("changed", changed)

    def focus(self) -> None:
        """Scroll the field into view and focus it."""
        self.run_method("focus")

    def _set_prop(self, prop: str, value: Any) -> None:
        if self._props[prop] != value:
            self._props[prop] = value

    def _changed(self, event: GenericEventArguments) -> Any:
        # The browser shows the value already; sending it back would only cost.
        with self._props.suspend_updates():
            self._props["value"] = event.args
        return self._on_change(event.args)


def _documents(choices: Sequence[Choice]) -> list[dict[str, Any]]:
    return [
        {
            "value": choice.value,
            "label": choice.label,
            "note": choice.note,
            "tags": list(choice.tags),
            "name": choice.name,
        }
        for choice in choices
    ]
