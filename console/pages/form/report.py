"""The report on a dataset, and its images with captions to edit."""

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Protocol

from console.pages.elements import Field, Tag, button
from console.pages.form.drafts import OpenDraft
from console.pages.formatting import count
from console.pages.layout import Frame
from console.security_headers import API
from console.views import Finding, ImageView

# More images at once make a page slow; the user can show more.
_PAGE_SIZE = 24
_MAX_FINDINGS = 100


class OnEdited(Protocol):
    """Called after the user removed an image or wrote a caption."""

    async def __call__(self, *, check_now: bool) -> None:
        """Check again now, or when the user asks for it."""


class Report:
    """The report and the images.

    Args:
        frame: Frame of the page.
        opened: The draft with its images.
        on_edited: Called after the user edited them.
        on_check: Checks them again.
    """

    def __init__(
        self,
        frame: Frame,
        opened: OpenDraft,
        on_edited: OnEdited,
        on_check: Callable[[], Awaitable[None]],
    ) -> None:
        self._frame, self._opened = frame, opened
        self._on_edited = on_edited
        self._max_images = _PAGE_SIZE
        self._status = Tag("p", "", "small", role="status")
        self._check = button("Check the images", "small")
        self._check.on("click", lambda: on_check())
        self._findings = Tag("div")
        self._images = Tag("div", classes="stack-small")
        self._check.set_visibility(False)

    def show_checking(self) -> None:
        """Show that the images are being checked."""
        self._check.set_visibility(False)
        self._status.update_text("Checking the images…")

    def offer_check(self) -> None:
        """Offer to check images that changed or were not checked yet."""
        was_checked = self._opened.report is not None
        self._status.update_text("Changed since the last check." if was_checked else "Not checked.")
        self._check.set_visibility(True)

    def show(self) -> None:
        """Show the report and the images."""
        self._check.set_visibility(False)
        self._status.update_text(self._summary())
        self._findings.clear()
        self._images.clear()
        report = self._opened.report
        if report is not None and report.findings:
            with self._findings:
                self._show_findings(report.findings)
        if self._opened.images:
            with self._images:
                self._show_images()

    def _summary(self) -> str:
        images, report = self._opened.images, self._opened.report
        if report is None:
            return f"{count(len(images), 'image')}, not checked" if images else ""
        severities = [finding.severity for finding in report.findings]
        valid = count(report.images, "valid image")
        if not severities:
            return f"{valid}, no problems"
        errors, warnings = severities.count("error"), severities.count("warning")
        return f"{valid}, {count(errors, 'error')}, {count(warnings, 'warning')}"

    def _show_findings(self, findings: tuple[Finding, ...]) -> None:
        numbers = {image.name: image.number for image in self._opened.images if image.error is None}
        box = Tag("div", classes="table-box table-box-inner")
        with box, Tag("table", classes="table table-rows"):
            Tag("caption", "Problems of the images", "sr-only")
            with Tag("thead"), Tag("tr"):
                for heading in ("Severity", "Image", "File", "Problem", "What to do", ""):
                    Tag("th", heading, scope="col")
            with Tag("tbody"):
                for finding in findings[:_MAX_FINDINGS]:
                    self._show_finding(finding, numbers.get(finding.file))
        if len(findings) > _MAX_FINDINGS:
            Tag("p", f"and {len(findings) - _MAX_FINDINGS} more", "muted small")

    def _show_finding(self, finding: Finding, number: int | None) -> None:
        with Tag("tr"):
            with Tag("td"):
                Tag("span", finding.severity, f"status status-{finding.severity}")
            with Tag("td"):
                if number is not None:
                    Tag("img", classes="mini", src=self._thumbnail(number), alt="", loading="lazy")
            Tag("td", _file_name(finding), "break mono")
            Tag("td", finding.message, "wide problem")
            Tag("td", finding.remedy, "wide muted problem")
            with Tag("td", classes="right act"):
                if self._opened.collection.path_of(finding.file) is not None:
                    self._add_remove_button(finding.file, "small")

    def _show_images(self) -> None:
        images = self._opened.images
        with Tag("details", open=len(images) <= _PAGE_SIZE):
            with Tag("summary"):
                Tag("h3", f"{count(len(images), 'image')} and captions")
            with Tag("div", classes="thumbs thumbs-box"):
                for image in images[: self._max_images]:
                    self._show_image(image)
            if len(images) > self._max_images:
                with Tag("div", classes="thumbs-more"):
                    button("Show more", "small").on("click", self._show_more)

    def _show_image(self, image: ImageView) -> None:
        with Tag("article", classes="thumb" if image.error is None else "thumb thumb-error"):
            if image.error is not None:
                Tag("div", image.error, "thumb-none")
            else:
                Tag(
                    "img", classes="thumb-image", src=self._thumbnail(image.number),
                    alt=image.caption or "", loading="lazy",
                )  # fmt: skip
            with Tag("div", classes="thumb-body"):
                is_editable = self._opened.collection.path_of(image.name) is not None
                with Tag("div", classes="thumb-head"):
                    Tag("span", image.name, "thumb-name", title=image.name)
                    if is_editable:
                        self._add_remove_button(image.name, "quiet small")
                if is_editable:
                    Field(
                        f"Caption of {image.name}", "lines", image.caption or "",
                        partial(self._write_caption, image.name),
                        placeholder="Add a caption", hide_label=True,
                    )  # fmt: skip
                else:
                    Tag("p", image.caption or "no caption", "small break")

    def _add_remove_button(self, name: str, variants: str) -> None:
        remove = button("Remove", variants, aria_label=f"Remove {name}")
        remove.on("click", partial(self._remove, name), [])

    async def _show_more(self) -> None:
        self._max_images += 4 * _PAGE_SIZE
        self.show()

    async def _remove(self, name: str, _event: object) -> None:
        self._opened.collection.remove(name)
        self._frame.announce(f"Removed {name}")
        await self._on_edited(check_now=True)

    async def _write_caption(self, name: str, caption: str) -> None:
        self._opened.collection.write_caption(name, caption)
        await self._on_edited(check_now=False)

    def _thumbnail(self, number: int) -> str:
        assert self._opened.upload is not None
        return self._frame.link(f"{API}/uploads/{self._opened.upload.id}/images/{number}")


def _file_name(finding: Finding) -> str:
    """Return the file name; a finding about the whole upload has none."""
    return "all images" if finding.file.startswith("upload:") else finding.file
