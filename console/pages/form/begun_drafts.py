"""The jobs that a user began to fill in and left: offered again, above an empty form."""

from collections.abc import Awaitable, Callable, Sequence

from console.pages.elements import Tag, button
from console.pages.form.drafts import BegunDraft
from console.pages.formatting import TYPE_NAMES, ago, count
from console.pages.layout import Frame


class BegunDrafts:
    """A note for each draft, with what continues or discards it.

    Args:
        frame: Frame of the page.
        begun: The drafts, the latest first.
        on_discard: Discards a draft.
    """

    def __init__(
        self,
        frame: Frame,
        begun: Sequence[BegunDraft],
        on_discard: Callable[[str], Awaitable[None]],
    ) -> None:
        self._frame, self._on_discard = frame, on_discard
        if not begun:
            return
        with Tag("section", classes="stack-small", aria_label="Continue your draft"):
            for draft in begun:
                self._add(draft)

    def _add(self, draft: BegunDraft) -> None:
        with Tag("div", classes="note actions actions-between") as note:
            images = count(draft.images, "image") if draft.images else "no images"
            about = (
                f"{draft.name}, {TYPE_NAMES[draft.training_type]}, {images}, {ago(draft.saved_at)}"
            )
            with Tag("p"):
                Tag("span", "Continue your draft: ", "strong")
                Tag("span", about, "break")
            with Tag("div", classes="actions"):
                link = self._frame.link(f"/new?draft={draft.id}")
                Tag(
                    "a", "Continue", "btn btn-small", href=link, aria_label=f"Continue {draft.name}"
                )
                discard = button("Discard", "quiet small", aria_label=f"Discard {draft.name}")

        async def answer() -> None:
            await self._on_discard(draft.id)
            note.delete()
            self._frame.announce(f"Discarded {draft.name}")

        discard.on("click", answer, [])
