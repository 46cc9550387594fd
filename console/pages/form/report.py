"""What was found in images, and the images themselves with their captions, to be mended."""

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Protocol

from console.pages.field import Field
from console.pages.form.drafts import Begun
from console.pages.formatting import count
from console.pages.layout import Frame
from console.pages.markup import Tag, button
from console.security_headers import API
from console.views import Finding, ImageView

# More at once make a page heavy; the rest comes when it is asked for.
_AT_A_TIME = 24
_MOST_FINDINGS = 100


class OnEdited(Protocol):
    """Called when an image was removed, or a caption written."""

    async def __call__(self, *, at_once: bool) -> None:
        """Check again at once, or when it is asked for."""


class Report:
    """The report and the images.

    Args:
        frame: The page around it.
        begun: The images.
        on_edited: Called when they were changed.
        on_check: Checks them again.
    """

    def __init__(
        self,
        frame: Frame,
        begun: Begun,
        on_edited: OnEdited,
        on_check: Callable[[], Awaitable[None]],
    ) -> None:
        self._frame, self._begun = frame, begun
        self._on_edited, self._on_check = on_edited, on_check
        self._shown = _AT_A_TIME
        self._status = Tag("p", "", "small", role="status")
        self._again = button("Check the images", "small")
        self._again.on("click", lambda: on_check())
        self._findings = Tag("div")
        self._images = Tag("div", classes="stack-small")
        self._again.set_visibility(False)

    def busy(self) -> None:
        """Say that the images are being checked."""
        self._again.set_visibility(False)
        self._status.say("Checking the images…")

    def offer_check(self) -> None:
        """Offer to check what was changed, or was not checked yet."""
        known = self._begun.checked is not None
        self._status.say("Changed since it was checked." if known else "Not checked yet.")
        self._again.set_visibility(True)

    def show(self) -> None:
        """Show what is known now."""
        self._again.set_visibility(False)
        self._status.say(self._summary())
        self._findings.clear()
        self._images.clear()
        checked = self._begun.checked
        if checked is not None and checked.findings:
            with self._findings:
                self._show_findings(checked.findings)
        if self._begun.listed:
            with self._images:
                self._show_images()

    def _summary(self) -> str:
        begun = self._begun
        if begun.checked is None and not begun.listed:
            return ""
        if begun.checked is None:
            return f"{count(len(begun.listed), 'image')}, not checked yet"
        levels = [it.severity for it in begun.checked.findings]
        good = count(begun.checked.images, "good image")
        errors, warnings = levels.count("error"), levels.count("warning")
        if not levels:
            return f"{good}, nothing to mend"
        return f"{good}, {count(errors, 'error')}, {count(warnings, 'warning')}"

    def _show_findings(self, findings: tuple[Finding, ...]) -> None:
        numbers = {it.name: it.number for it in self._begun.listed if it.error is None}
        box = Tag("div", classes="table-box", style="margin-bottom: 0")
        with box, Tag("table", classes="table table-rows"):
            Tag("caption", "What was found in the images", "sr-only")
            with Tag("thead"), Tag("tr"):
                for heading in ("Severity", "Image", "File", "Problem", "What to do", ""):
                    Tag("th", heading, scope="col")
            with Tag("tbody"):
                for finding in findings[:_MOST_FINDINGS]:
                    self._show_finding(finding, numbers.get(finding.file))
        if len(findings) > _MOST_FINDINGS:
            Tag("p", f"and {len(findings) - _MOST_FINDINGS} more", "muted small")

    def _show_finding(self, finding: Finding, number: int | None) -> None:
        with Tag("tr"):
            with Tag("td"):
                Tag("span", finding.severity, f"status status-{finding.severity}")
            with Tag("td"):
                if number is not None:
                    Tag("img", classes="mini", src=self._thumbnail(number), alt="", loading="lazy")
            Tag("td", _file(finding), "break mono")
            Tag("td", finding.message, "wide problem")
            Tag("td", finding.remedy, "wide muted problem")
            with Tag("td", classes="right act"):
                if self._begun.collection.path_of(finding.file) is not None:
                    self._add_remove(finding.file, "small")

    def _show_images(self) -> None:
        listed = self._begun.listed
        with Tag("details", open=len(listed) <= _AT_A_TIME):
            with Tag("summary"):
                Tag("h3", f"{count(len(listed), 'image')} and their captions")
            with Tag("div", classes="thumbs", style="padding-top: 12px"):
                for image in listed[: self._shown]:
                    self._show_image(image)
            if len(listed) > self._shown:
                more = button("Show more", "small", style="margin-top: 12px")
                more.on("click", self._show_more)

    def _show_image(self, image: ImageView) -> None:
        wrong = image.error is not None
        with Tag("article", classes="thumb thumb-wrong" if wrong else "thumb"):
            if wrong:
                Tag("div", image.error or "", "thumb-none")
            else:
                source = self._thumbnail(image.number)
                Tag(
                    "img",
                    classes="thumb-image",
                    src=source,
                    alt=image.caption or "",
                    loading="lazy",
                )
            with Tag("div", classes="thumb-body"):
                loose = self._begun.collection.path_of(image.name) is not None
                with Tag("div", classes="thumb-head"):
                    Tag("span", image.name, "thumb-name", title=image.name)
                    if loose:
                        self._add_remove(image.name, "quiet small")
                if loose:
                    Field(
                        f"Caption of {image.name}", "lines", image.caption or "",
                        partial(self._write, image.name),
                        placeholder="no caption yet", hide_label=True,
                    )  # fmt: skip
                else:
                    Tag("p", image.caption or "no caption", "small break")

    def _add_remove(self, name: str, look: str) -> None:
        remove = button("Remove", look, aria_label=f"Remove {name}")
        remove.on("click", partial(self._remove, name), [])

    async def _show_more(self) -> None:
        self._shown += 4 * _AT_A_TIME
        self.show()

    async def _remove(self, name: str, _event: object) -> None:
        self._begun.collection.remove(name)
        self._frame.tell(f"{name} removed")
        await self._on_edited(at_once=True)

    async def _write(self, name: str, caption: str) -> None:
        self._begun.collection.write_caption(name, caption)
        await self._on_edited(at_once=False)

    def _thumbnail(self, number: int) -> str:
        assert self._begun.upload is not None
        return self._frame.link(f"{API}/uploads/{self._begun.upload.id}/images/{number}")


def _file(finding: Finding) -> str:
    """The file's name; what is of all of them is of no file."""
    return "all of them" if finding.file.startswith("upload:") else finding.file
