"""The bar at the bottom of the form: images, time and memory of the job, and its start."""

from collections.abc import Awaitable, Callable

from console.pages.elements import Tag, button
from console.pages.form.preview_panel import duration, memory_class_of
from console.pages.formatting import class_text, count
from console.views import Preview


class StartBar:
    """The bar.

    Args:
        on_start: Starts the job.
        go_to_problem: Scrolls to the first problem.
    """

    def __init__(
        self, on_start: Callable[[], Awaitable[None]], go_to_problem: Callable[[], None]
    ) -> None:
        self._on_start, self._is_starting = on_start, False
        with Tag("section", classes="start-bar", aria_label="Start"):
            with Tag("dl", classes="start-facts"):
                self._images = _figure("Images")
                self._time = _figure("Time")
                self._memory = _figure("GPU memory")
            with Tag("div", classes="start-meter", aria_hidden="true"):
                self._meter = Tag("div", classes="start-meter-used")
            self._problems = Tag("button", "", "reset start-problems", type="button")
            self._problems.on("click", lambda: go_to_problem())
            self._problems.set_visibility(False)
            self._start = button("Start training", "primary")
            self._start.on("click", self._clicked)

    def show(self, images: int, preview: Preview | None, problems: int) -> None:
        """Show the job's figures, and how many problems stop it.

        Args:
            images: Number of images.
            preview: The preview; None when it is not known.
            problems: Number of problems.
        """
        self._images.update_text(f"{images:,}" if images else "none yet")
        self._time.update_text("unknown" if preview is None else duration(preview.estimate))
        memory, share = "unknown", 0.0
        if preview is not None:
            route, memory_class = preview.route, memory_class_of(preview)
            kind = class_text(route.memory_class, emulated=route.emulated)
            memory = f"{route.needed_gib:.0f} of {memory_class.floor_gib:.0f} GiB, {kind}"
            share = min(1.0, route.needed_gib / memory_class.floor_gib)
        self._memory.update_text(memory)
        self._meter.set_attribute("style", f"width: {100 * share:.1f}%")
        self._problems.update_text(f"{count(problems, 'problem')} to fix" if problems else "")
        self._problems.set_visibility(problems > 0)

    async def _clicked(self) -> None:
        if self._is_starting:
            return
        self._is_starting = True
        self._start.set_attribute("aria_disabled", "true")
        try:
            await self._on_start()
        finally:
            self._is_starting = False
            self._start.set_attribute("aria_disabled", None)


def _figure(name: str) -> Tag:
    with Tag("div", classes="start-figure"):
        Tag("dt", name)
        return Tag("dd", "…")
