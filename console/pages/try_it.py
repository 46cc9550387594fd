"""The offer to try it: a job with demo images and a small model, started by one click."""

from nicegui import ui

from console.errors import ConsoleError
from console.pages.elements import Tag, button
from console.pages.formatting import sentence
from console.pages.layout import Frame
from console.services.services import Services
from tasks.errors import JobError

_REFRESH_INTERVAL_S = 1.0
_OFFER = (
    "New here? Teach a miniature model a shape that it does not know, from 28 demo images, in a "
    "minute or two. Its samples show what it learns, and you get a real LoRA file."
)
_OFFER_WITHOUT_SAMPLES = (
    "New here? Train a tiny model on 28 demo images, in a few minutes. You get a real LoRA file; "
    "the model is too small to draw anything."
)
_PREPARING = "The demo is being prepared, which takes some seconds."


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
            self._text = Tag("p", _PREPARING, "small", role="status")
            self._start = button("Try it").on("click", self._submit)
        self._start.set_visibility(False)
        self._timer = ui.timer(_REFRESH_INTERVAL_S, self._refresh)

    async def _refresh(self) -> None:
        state = await self._services.demo.state()
        if state.problem:
            self._text.update_text(f"The demo could not be prepared: {state.problem}")
        elif state.is_ready:
            self._text.update_text(_OFFER if state.has_samples else _OFFER_WITHOUT_SAMPLES)
        else:
            return
        self._start.set_visibility(state.is_ready)
        self._timer.deactivate()

    async def _submit(self) -> None:
        self._start.set_visibility(False)
        try:
            job_id = await self._services.demo.start(self._frame.caller)
        except (ConsoleError, JobError) as error:
            self._text.update_text(sentence(str(error)))
            self._start.set_visibility(True)
            return
        ui.navigate.to(self._frame.link(f"/jobs/{job_id}"))
