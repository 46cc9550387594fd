"""A labelled control: native, so that keyboards, screen readers and phones know it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from nicegui.element import Element
from nicegui.events import GenericEventArguments


@dataclass(frozen=True)
class Choice:
    """Something to choose.

    Attributes:
        value: What it is known by.
        label: What is shown.
        note: A sentence on it.
        tags: Short marks beside the label.
    """

    value: str
    label: str
    note: str = ""
    tags: tuple[str, ...] = ()


class Field(Element, component="field.js"):
    """A control with its label, help, and fault.

    Args:
        label: What it asks for.
        kind: ``text``, ``integer``, ``number``, ``lines``, ``json``, ``switch``, ``choice`` or
            ``cards``.
        value: What it shows.
        on_told: Called with what a person gave, once it rests.
        on_reset: Called when the value is taken back; None where there is no way back.
        choices: Of ``choice`` and ``cards``.
        help: A sentence on it.
        unit: Shown behind the value.
        suggestions: Offered while typing.
        hide_label: Only screen readers are told the label.
    """

    def __init__(
        self,
        label: str,
        kind: str,
        value: str | bool,
        on_told: Callable[[Any], Any],
        *,
        on_reset: Callable[[], Any] | None = None,
        choices: Sequence[Choice] = (),
        help: str = "",
        unit: str = "",
        placeholder: str = "",
        suggestions: Sequence[str] = (),
        hide_label: bool = False,
    ) -> None:
        super().__init__()
        self._props.update(
            label=label, kind=kind, value=value, version=0, choices=_documents(choices), help=help,
            unit=unit, placeholder=placeholder, suggestions=list(suggestions),
            hideLabel=hide_label, error="", own=False,
        )  # fmt: skip
        self._on_told = on_told
        self.on("told", self._told, [None])
        if on_reset is not None:
            self.on("reset", lambda _: on_reset(), [])

    @property
    def value(self) -> Any:
        """What it shows."""
        return self._props["value"]

    def show(self, value: str | bool) -> None:
        """Show a value that no person gave."""
        if value != self._props["value"]:
            self._props["value"] = value
            self._props["version"] = int(self._props["version"]) + 1

    def offer(self, choices: Sequence[Choice]) -> None:
        """Offer something else to choose from."""
        self._change("choices", _documents(choices))

    def flag(self, error: str = "", own: bool = False) -> None:
        """Show what is wrong with the value, and whether it is the person's own."""
        self._change("error", error)
        self._change("own", own)

    def explain(self, text: str) -> None:
        """Show another sentence on it."""
        self._change("help", text)

    def focus(self) -> None:
        """Bring it into view and put the cursor there."""
        self.run_method("focus")

    def _change(self, prop: str, value: Any) -> None:
        if self._props[prop] != value:
            self._props[prop] = value

    def _told(self, event: GenericEventArguments) -> Any:
        # The browser shows it already; an update would only cost.
        with self._props.suspend_updates():
            self._props["value"] = event.args
        return self._on_told(event.args)


def _documents(choices: Sequence[Choice]) -> list[dict[str, Any]]:
    return [
        {"value": it.value, "label": it.label, "note": it.note, "tags": list(it.tags)}
        for it in choices
    ]
