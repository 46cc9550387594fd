"""What changes many captions at once: one remedy for missing ones, prefix, suffix and replacing."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from console.pages.elements import Field, Tag, button
from console.pages.form.drafts import OpenDraft
from console.pages.form.working_copy import WorkingCopy
from console.pages.formatting import count
from console.pages.layout import Frame
from tasks.dataset import MAX_CAPTION_BYTES

# Of each field: a page computes the change of all captions while the user types.
_MAX_TEXT = 1000


@dataclass(frozen=True)
class CaptionEdit:
    """A change of all captions.

    Attributes:
        find: The text that is replaced, in the same case; empty for none.
        replacement: What replaces it.
        prefix: Put before captions that do not begin with it.
        suffix: Put after captions that do not end with it.
    """

    find: str = ""
    replacement: str = ""
    prefix: str = ""
    suffix: str = ""

    def apply(self, caption: str) -> str:
        """Return a changed caption; an image without a caption keeps none."""
        # A caption that grows further is cut there.
        most = MAX_CAPTION_BYTES // max(1, len(self.replacement)) + 1
        text = caption.replace(self.find, self.replacement, most) if self.find else caption
        prefix, suffix = self.prefix.strip(), self.suffix.strip()
        if not text.strip():
            return text
        if prefix and not text.startswith(prefix):
            text = f"{prefix} {text}"
        if suffix and not text.endswith(suffix):
            # A comma or a full stop follows the word before it.
            text = f"{text}{suffix}" if suffix[0] in ",.;:" else f"{text} {suffix}"
        return text


class CaptionTools:
    """The tools.

    Args:
        frame: Frame of the page.
        opened: The draft with its images.
        images: The images.
        add_writer: Adds the button that lets a model write captions, if the fleet has one.
        on_edited: Called after captions were changed.
    """

    def __init__(
        self,
        frame: Frame,
        opened: OpenDraft,
        images: WorkingCopy,
        add_writer: Callable[[], None],
        on_edited: Callable[[], Awaitable[None]],
    ) -> None:
        self._frame, self._opened, self._images = frame, opened, images
        self._on_edited = on_edited
        self._values = dict.fromkeys(("find", "replacement", "prefix", "suffix"), "")
        self._former: dict[str, str | None] = {}
        self._same_text = ""
        self._box = Tag("div", classes="stack-small")
        with self._box:
            self._missing = Tag("div", classes="note note-warning stack-small")
            with self._missing:
                self._add_remedy()
            self._writer = Tag("div")
            with self._writer:
                add_writer()
            with Tag("details"):
                Tag("summary", "Change all captions", "small")
                with Tag("div", classes="stack-small"):
                    self._add_fields()
            with Tag("div", classes="actions"):
                self._undo = button("Undo the last change", "small")
        self._undo.on("click", self._restore)
        self.show()

    def show(self) -> None:
        """Show what can be done with the present captions."""
        self._box.set_visibility(bool(self._opened.images) and self._images.is_used)
        lacking = len(self._images.uncaptioned)
        self._missing.set_visibility(lacking > 0)
        has = "image has" if lacking == 1 else "images have"
        self._lacking.update_text(f"{lacking} {has} no caption.")
        self._use_text.update_text(f"Use it for {count(lacking, 'image')}")
        default = self._opened.draft.value("trigger_word") or self._opened.draft.name
        if not self._same_text:
            self._same.show(str(default))
        self._undo.set_visibility(bool(self._former))
        self._show_count()

    async def note_change(self, former: dict[str, str | None]) -> None:
        """Offer to undo a change, and show it.

        Args:
            former: The changed captions as they were.
        """
        self._former = former
        self._frame.announce(f"Changed {count(len(former), 'caption')}")
        await self._on_edited()

    def _add_remedy(self) -> None:
        self._lacking = Tag("p", "", "strong")
        Tag("p", "Write it below each image, or give all of these the same one.", "small")
        with Tag("div", classes="actions actions-end"):
            self._same = Field("Caption for all of them", "text", "", self._set_same)
            self._use_text = button("", "small")
        self._use_text.on("click", self._use_for_all)

    def _add_fields(self) -> None:
        with Tag("div", classes="grid-2"):
            for name, label in (
                ("find", "Find"),
                ("replacement", "Replace with"),
                ("prefix", "Put before each caption"),
                ("suffix", "Put after each caption"),
            ):
                Field(label, "text", "", partial(self._set, name))
        with Tag("div", classes="actions"):
            self._apply = button("Change captions", "small")
            self._count = Tag("p", "", "small muted", role="status")
        self._apply.on("click", self._change)

    def _set_same(self, typed: Any) -> None:
        self._same_text = str(typed)

    def _set(self, name: str, typed: Any) -> None:
        self._values[name] = str(typed)[:_MAX_TEXT]
        self._show_count()

    def _show_count(self) -> None:
        edit = CaptionEdit(**self._values)
        captions = [image.caption or "" for image in self._opened.images]
        changed = sum(edit.apply(caption) != caption for caption in captions)
        self._count.update_text(
            f"Changes {changed} of {count(len(captions), 'caption')}."
            if any(self._values.values())
            else "Fill in one of the fields."
        )
        self._apply.set_attribute("aria_disabled", None if changed else "true")

    async def _change(self) -> None:
        edit = CaptionEdit(**self._values)
        former = await self._images.edit_captions(lambda it: edit.apply(it.caption or ""))
        if former:
            await self.note_change(former)

    async def _use_for_all(self) -> None:
        text = self._same_text or str(self._same.props["value"])
        lacking = {*self._images.uncaptioned}
        former = await self._images.edit_captions(
            lambda it: text if it.name in lacking else it.caption or ""
        )
        if former:
            await self.note_change(former)

    async def _restore(self) -> None:
        former, self._former = self._former, {}
        await self._images.write_captions(former)
        self._frame.announce(f"Restored {count(len(former), 'caption')}")
        await self._on_edited()
