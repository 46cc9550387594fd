"""The images of a draft: tiles with a thumbnail, an editable caption and the worst fault."""

from collections.abc import Awaitable, Callable
from functools import partial

from console.pages.elements import Field, Tag, button
from console.pages.form.drafts import OpenDraft, ShownImage
from console.pages.formatting import count
from console.pages.layout import Frame

# More images at once make a page slow; the user can show more.
_PAGE_SIZE = 24
THUMBNAILS = "/form-images"
"""Path of the thumbnails of drafts; the draft's id and the image's key follow."""


class Gallery:
    """The images.

    Args:
        frame: Frame of the page.
        opened: The draft with its images.
        on_remove: Removes an image.
        on_caption: Writes the caption of an image.
    """

    def __init__(
        self,
        frame: Frame,
        opened: OpenDraft,
        on_remove: Callable[[str], Awaitable[None]],
        on_caption: Callable[[str, str], Awaitable[None]],
    ) -> None:
        self._frame, self._opened = frame, opened
        self._on_remove, self._on_caption = on_remove, on_caption
        self._max_images = _PAGE_SIZE
        self._tiles: dict[str, _Tile] = {}
        self._box = Tag("div", classes="stack-small")
        self._more: Tag | None = None

    def show(self) -> None:
        """Show the images; a caption that is being typed is left alone."""
        images = self._opened.images[: self._max_images]
        names = [image.name for image in images]
        if names != [*self._tiles]:
            self._build(images)
        for image in images:
            self._tiles[image.name].show(image, self._opened.faults.get(image.name))
        if self._more is not None:
            self._more.set_visibility(len(self._opened.images) > len(images))

    def set_visibility(self, visible: bool) -> None:
        """Show or hide the images."""
        self._box.set_visibility(visible)

    def show_captions(self) -> None:
        """Show captions that the user did not type, in their fields."""
        for image in self._opened.images:
            if image.name in self._tiles:
                self._tiles[image.name].show_caption(image.caption or "")

    def _build(self, images: tuple[ShownImage, ...]) -> None:
        self._box.clear()
        self._tiles.clear()
        self._more = None
        if not images:
            return
        number = len(self._opened.images)
        with self._box, Tag("details", open=True):
            with Tag("summary"):
                Tag("h3", f"{count(number, 'image')} and captions")
            with Tag("div", classes="thumbs thumbs-box"):
                for image in images:
                    self._tiles[image.name] = self._tile(image)
            with Tag("div", classes="thumbs-more") as self._more:
                button("Show more", "small").on("click", self._show_more)

    def _tile(self, image: ShownImage) -> "_Tile":
        link = self._frame.link(f"{THUMBNAILS}/{self._opened.id}/")
        return _Tile(
            image, link, partial(self._remove, image.name), partial(self._on_caption, image.name)
        )

    async def _show_more(self) -> None:
        self._max_images += 4 * _PAGE_SIZE
        self.show()

    async def _remove(self, name: str) -> None:
        self._frame.announce(f"Removed {name}")
        await self._on_remove(name)


class _Tile:
    """An image with its caption.

    Args:
        image: The image.
        link: Address of thumbnails, before their key.
        on_remove: Removes the image.
        on_caption: Writes its caption.
    """

    def __init__(
        self,
        image: ShownImage,
        link: str,
        on_remove: Callable[[], Awaitable[None]],
        on_caption: Callable[[str], Awaitable[None]],
    ) -> None:
        self._link = link
        self._tile = Tag("article", classes="thumb")
        with self._tile:
            self._placeholder = Tag("div", "", "thumb-none")
            self._image = Tag("img", classes="thumb-image", loading="lazy", alt="")
            with Tag("div", classes="thumb-body"):
                with Tag("div", classes="thumb-head"):
                    Tag("span", image.name, "thumb-name", title=image.name)
                    remove = button("Remove", "quiet small", aria_label=f"Remove {image.name}")
                    remove.on("click", on_remove, [])
                self._fault = Tag("p", "", "small break")
                self._field = Field(
                    f"Caption of {image.name}", "lines", image.caption or "", on_caption,
                    placeholder="Add a caption", hide_label=True,
                )  # fmt: skip

    def show(self, image: ShownImage, finding: tuple[str, str] | None) -> None:
        """Show the image's present state and its worst fault: that it cannot be read is worst.

        Args:
            image: The image.
            finding: Severity and message of the worst finding about it; None without one.
        """
        severity, fault = finding or ("", "")
        is_error, fault = severity == "error" or bool(image.error), image.error or fault
        self._tile.set_classes("thumb thumb-error" if image.error else "thumb")
        self._placeholder.update_text("" if image.error or image.has_thumbnail else "…")
        self._placeholder.classes(**{"remove" if image.error else "add": "thumb-wait"})
        self._placeholder.set_visibility(not image.has_thumbnail)
        self._image.set_visibility(image.has_thumbnail)
        self._fault.update_text(fault)
        self._fault.classes(
            add="error" if is_error else "muted", remove="muted" if is_error else "error"
        )
        self._fault.set_visibility(bool(fault))
        if image.has_thumbnail:
            self._image.set_attribute("src", f"{self._link}{image.key}")
            self._image.set_attribute("alt", image.caption or "")

    def show_caption(self, caption: str) -> None:
        """Show a caption that the user did not type."""
        self._field.show(caption)
