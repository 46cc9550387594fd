"""The offer to try it: a job with demo images and a small model, started by one click."""

from nicegui import ui

from console.errors import ConsoleError
from console.pages.elements import Tag, button
from console.pages.formatting import sentence
from console.pages.layout import Frame
from console.services.services import Services
from tasks.errors import JobError

_OFFER = (
    "New here? Teach a miniature model a shape that it does not know, from 28 demo images, in a "
    "minute or two. Its samples show what it learns, and you get a real LoRA file."
)


class TryIt:
    """The offer to try it, built where it is made; nothing where no demo is offered.

    Args:
        frame: Frame of the page.
        services: The services.
    """

    def __init__(self, frame: Frame, services: Services) -> None:
        self._frame, self._services = frame, services
        if not services.demo.is_offered_to(frame.caller):
            return
        with Tag("section", classes="try-it", aria_label="Try it"):
            self._text = Tag("p", _OFFER, "small", role="status")
            self._start = button("Try it").on("click", self._submit)

    async def _submit(self) -> None:
        self._start.set_visibility(False)
        try:
            job_id = await self._services.demo.start(self._frame.caller)
        except (ConsoleError, JobError) as error:
            self._text.update_text(sentence(str(error)))
            self._start.set_visibility(True)
            return
        ui.navigate.to(self._frame.link(f"/jobs/{job_id}"))
