"""The report on a dataset: whether it was checked, and the findings."""

from collections.abc import Awaitable, Callable
from functools import partial

from console.pages.elements import Tag, button
from console.pages.form.drafts import OpenDraft
from console.pages.form.gallery import THUMBNAILS
from console.pages.form.labels import in_labels
from console.pages.formatting import count
from console.pages.layout import Frame
from console.views import Finding

_MAX_FINDINGS = 100


class Report:
    """The report.

    Args:
        frame: Frame of the page.
        opened: The draft with its images and the report.
        on_remove: Removes a file.
        on_check: Checks the images again.
    """

    def __init__(
        self,
        frame: Frame,
        opened: OpenDraft,
        on_remove: Callable[[str], Awaitable[None]],
        on_check: Callable[[], Awaitable[None]],
    ) -> None:
        self._frame, self._opened, self._on_remove = frame, opened, on_remove
        self._status = Tag("p", "", "small", role="status")
        self._check = button("Check the images", "small")
        self._check.on("click", lambda: on_check())
        self._findings = Tag("div")
        self._check.set_visibility(False)

    def show_progress(self, text: str) -> None:
        """Show what is being done with the images."""
        self._check.set_visibility(False)
        self._status.update_text(text)

    def offer_check(self) -> None:
        """Offer to check images that changed or were not checked yet."""
        was_checked = self._opened.report is not None
        self._status.update_text("Changed since the last check." if was_checked else "Not checked.")
        self._check.set_visibility(True)

    def show(self) -> None:
        """Show the report."""
        self._check.set_visibility(False)
        self._status.update_text(self._summary())
        self._findings.clear()
        findings = self._all_findings()
        if findings:
            with self._findings:
                self._show_findings(findings)

    def _all_findings(self) -> list[Finding]:
        """Return the findings; an image that cannot be read and lacks a caption has one."""
        report = self._opened.report
        findings = [] if report is None else [*report.findings]
        named = {finding.file for finding in findings}
        findings[:0] = [
            Finding(severity="error", file=it.name, message=it.error, remedy="remove it")
            for it in self._opened.images
            if it.error and not it.caption and it.name not in named
        ]
        return findings

    def _summary(self) -> str:
        images, report = self._opened.images, self._opened.report
        if report is None:
            return f"{count(len(images), 'image')}, not checked" if images else ""
        severities = [finding.severity for finding in self._all_findings()]
        valid = count(report.images, "valid image")
        lacking = sum(not it.caption and not it.error for it in images)
        if self._opened.lacks_captions and lacking:
            valid += f", {lacking} without a caption"
        if not severities:
            return f"{valid}, no problems" if not self._opened.lacks_captions else valid
        errors, warnings = severities.count("error"), severities.count("warning")
        return f"{valid}, {count(errors, 'error')}, {count(warnings, 'warning')}"

    def _show_findings(self, findings: list[Finding]) -> None:
        keys = {image.name: image.key for image in self._opened.images if image.has_thumbnail}
        box = Tag("div", classes="table-box table-box-inner")
        with box, Tag("table", classes="table table-rows"):
            Tag("caption", "Problems of the images", "sr-only")
            with Tag("thead"), Tag("tr"):
                for heading in ("Severity", "Image", "File", "Problem", "What to do", "Action"):
                    Tag("th", heading, scope="col")
            with Tag("tbody"):
                for finding in findings[:_MAX_FINDINGS]:
                    self._show_finding(finding, keys.get(finding.file))
        if len(findings) > _MAX_FINDINGS:
            Tag("p", f"and {len(findings) - _MAX_FINDINGS} more", "muted small")

    def _show_finding(self, finding: Finding, key: str | None) -> None:
        with Tag("tr"):
            with Tag("td"):
                Tag("span", finding.severity, f"status status-{finding.severity}")
            with Tag("td"):
                if key is not None:
                    link = self._frame.link(f"{THUMBNAILS}/{self._opened.id}/{key}")
                    Tag("img", classes="mini", src=link, alt="", loading="lazy")
            Tag("td", _file_name(finding), "break mono")
            Tag("td", in_labels(finding.message), "wide problem")
            Tag("td", in_labels(finding.remedy), "wide muted problem")
            with Tag("td", classes="right act"):
                if self._opened.collection.path_of(finding.file) is not None:
                    remove = button("Remove", "small", aria_label=f"Remove {finding.file}")
                    remove.on("click", partial(self._remove, finding.file), [])

    async def _remove(self, name: str) -> None:
        self._frame.announce(f"Removed {name}")
        await self._on_remove(name)


def _file_name(finding: Finding) -> str:
    """Return the file name; a finding about the whole upload has none."""
    return "all images" if finding.file.startswith("upload:") else finding.file
