"""What a job leaves: published files, their copies, and the deliveries of its webhook."""

import json
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

from nicegui import ui

from console.errors import ConsoleError
from console.pages.elements import LocalTime, Tag, button, panel
from console.pages.formatting import count, size
from console.pages.layout import Frame
from console.security_headers import API
from console.services.jobs.file_links import MAX_LIFE_S, FileLinks
from console.views import FilesView, FileView
from tasks.access.api_keys import Scope
from tasks.errors import JobError
from tasks.state.webhook_deliveries import Delivery

_SAMPLE_PREFIX = "validation/"
# Of a job's deliveries, the newest; the API has the others.
_MAX_DELIVERIES = 20


class FilesPart:
    """Published files."""

    def __init__(self, frame: Frame, links: FileLinks, job_id: str) -> None:
        self._frame, self._links, self._job_id = frame, links, job_id
        self._panel = panel("Results", "The first file has the trained weights.")
        with self._panel:
            self._box = Tag("div")
        self._panel.set_visibility(False)

    def show(self, view: FilesView) -> None:
        """Show the files; the samples, which are many, in a disclosure."""
        self._panel.set_visibility(bool(view.files))
        samples = [file for file in view.files if file.name.startswith(_SAMPLE_PREFIX)]
        others = [file for file in view.files if not file.name.startswith(_SAMPLE_PREFIX)]
        self._box.clear()
        with self._box:
            self._show_table(others, "Published files")
            if samples:
                with Tag("details", classes="more-files"):
                    with Tag("summary"):
                        Tag("h3", f"{count(len(samples), 'sample')}")
                    self._show_table(samples, "Published samples")

    def _show_table(self, files: list[FileView], caption: str) -> None:
        with Tag("div", classes="table-box"), Tag("table", classes="table table-rows"):
            Tag("caption", caption, "sr-only")
            with Tag("thead"), Tag("tr"):
                for heading, classes in (("File", ""), ("Step", "right"), ("Size", "right")):
                    Tag("th", heading, classes, scope="col")
                with Tag("th", scope="col"):
                    Tag("span", "Actions", "sr-only")
            with Tag("tbody"):
                for number, file in enumerate(files):
                    self._show_file(file, is_first=number == 0)

    def _show_file(self, file: FileView, *, is_first: bool) -> None:
        with Tag("tr"):
            Tag("td", file.name, "break")
            step = "" if file.step is None else f"{file.step:,}"
            Tag("td", step, "right nowrap", data_label="Step" if step else None)
            Tag("td", size(file.size), "right nowrap", data_label="Size")
            with Tag("td", classes="right act"):
                Tag(
                    "a", "Download", "btn btn-small" + (" btn-primary" if is_first else ""),
                    href=file_link(self._frame, self._job_id, file), download=file.name,
                    aria_label=f"Download {file.name}",
                )  # fmt: skip
                copy = button("Copy link", "small", aria_label=f"Copy link to {file.name}")
                copy.on("click", lambda: self._copy_link(file.name))
                digest = button(
                    "Copy SHA-256", "small", title=file.sha256,
                    aria_label=f"Copy SHA-256 of {file.name}",
                )  # fmt: skip
                digest.on("click", lambda: _copy(json.dumps(file.sha256), "The SHA-256 is copied."))

    async def _copy_link(self, name: str) -> None:
        """Copy a link that downloads a file without a key, for an hour."""
        try:
            caller = self._frame.allowed(Scope.FILES)
            link = await self._links.create(caller, self._job_id, name, MAX_LIFE_S)
        except (ConsoleError, JobError) as error:
            ui.notify(str(error), type="warning")
            return
        path = json.dumps(self._frame.link(f"{API}{link.path}"))
        text = "Anyone with this link can download the file for an hour."
        _copy(f"location.origin + {path}", text)


def file_link(frame: Frame, job_id: str, file: FileView) -> str:
    """Return the address of a published file."""
    return frame.link(f"{API}/jobs/{quote(job_id)}/files/{quote(file.name)}")


class CopiesPart:
    """Copies of the results at the job's destinations."""

    def __init__(self) -> None:
        self._panel = panel("Copies", "Where the results were copied after the end.")
        with self._panel:
            self._list = Tag("ul", classes="stack-small")
        self._panel.set_visibility(False)
        self._shown: object = None

    def show(self, copies: Sequence[dict[str, Any]]) -> None:
        """Show the copies; a failed one with its reason."""
        self._panel.set_visibility(bool(copies))
        if copies == self._shown:
            return
        self._shown = copies
        self._list.clear()
        with self._list:
            for copy in copies:
                with Tag("li", classes="break"):
                    url, error = copy.get("url"), copy.get("error")
                    if url and url.startswith("https://"):
                        Tag("a", url, href=url, rel="noopener noreferrer", target="_blank")
                    else:
                        Tag("span", url or copy.get("target", ""))
                    if error:
                        Tag("p", f"Not copied: {error}", "error")


class DeliveriesPart:
    """Deliveries of the job's webhook, newest first."""

    def __init__(self) -> None:
        self._panel = panel("Webhook deliveries", "What the job's webhook was sent.")
        with self._panel:
            self._box = Tag("div", classes="table-box")
        self._panel.set_visibility(False)
        self._shown: object = None

    def show(self, deliveries: Sequence[Delivery]) -> None:
        """Show the newest deliveries."""
        newest = tuple(deliveries[:_MAX_DELIVERIES])
        self._panel.set_visibility(bool(newest))
        if newest == self._shown:
            return
        self._shown = newest
        self._box.clear()
        with self._box, Tag("table", classes="table table-rows"):
            Tag("caption", "Webhook deliveries, newest first", "sr-only")
            with Tag("thead"), Tag("tr"):
                for heading in ("Event", "Status", "Attempts", "Time"):
                    Tag("th", heading, scope="col")
            with Tag("tbody"):
                for delivery in newest:
                    with Tag("tr"):
                        Tag("td", delivery.event)
                        with Tag("td", classes="break"):
                            Tag("span", delivery.status)
                            Tag("div", delivery.reason or "", "muted small")
                        Tag("td", f"{delivery.attempts}", data_label="Attempts")
                        with Tag("td", classes="muted nowrap"):
                            LocalTime(delivery.at)


def _copy(expression: str, done: str) -> None:
    """Copy the value of a JavaScript expression to the clipboard of the browser."""
    # Browsers have no clipboard for pages without HTTPS, but on this machine.
    ui.run_javascript(
        f"const text = {expression};"
        "(navigator.clipboard ? navigator.clipboard.writeText(text) : Promise.reject())"
        ".catch(() => prompt('Copy this text:', text))"
    )
    ui.notify(done)
