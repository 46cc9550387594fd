"""Plain HTML elements. Text is always text: nothing that a person wrote is ever read as HTML."""

from typing import Any

from nicegui.elements.mixins.text_element import TextElement


class Tag(TextElement):
    """An HTML element.

    Args:
        name: Such as ``section``.
        text: What stands in it.
        classes: Its classes, with spaces between.
        **attributes: As in HTML, ``_`` for ``-``; None leaves one away.
    """

    def __init__(self, name: str, text: str = "", classes: str = "", **attributes: Any) -> None:
        super().__init__(tag=name, text=text)
        self.classes(classes)
        for attribute, value in attributes.items():
            self.have(attribute, value)

    def have(self, attribute: str, value: Any) -> None:
        """Give an attribute another value; None takes it away."""
        name = attribute.rstrip("_").replace("_", "-")
        if value is None:
            self.props.pop(name, None)
        elif self.props.get(name) != value:
            self.props[name] = value

    def say(self, text: str) -> None:
        """Show another text, where it is another one."""
        if self.text != text:
            self.text = text

    def look(self, classes: str) -> None:
        """Have these classes and no others."""
        if self.classes != classes.split():
            self.classes(replace=classes)


def panel(title: str, hint: str = "", *, level: int = 2) -> Tag:
    """A titled part of a page, to be filled; a region of its own for screen readers."""
    section = Tag("section", classes="panel")
    with section, Tag("div", classes="panel-head"):
        heading = Tag(f"h{level}", title)
        if hint:
            Tag("p", hint, "muted small")
    section.have("aria_labelledby", heading.html_id)
    return section


def button(text: str, look: str = "", **attributes: Any) -> Tag:
    """A button; ``look`` is primary, danger, quiet, small or several of them."""
    classes = " ".join(["btn", *(f"btn-{it}" for it in look.split())])
    return Tag("button", text, classes, type="button", **attributes)


def fact(name: str, value: str = "") -> Tag:
    """A row of a ``dl.facts``.

    Returns:
        Its value.
    """
    Tag("dt", name)
    return Tag("dd", value)
