"""The fleet: GPUs and what each does, queues and who waits."""

from urllib.parse import quote, urlsplit

from nicegui import ui

from console.errors import ConsoleError
from console.pages.formatting import count, span
from console.pages.layout import Frame
from console.pages.markup import Tag, fact, panel
from console.services.services import Services
from console.views import FleetView, QueueView, WorkerView
from tasks.errors import JobError
from tasks.settings.settings import Settings

_ASK_EVERY_S = 3.0


class FleetPage:
    """The page.

    Args:
        frame: The page around it.
        service: Knows the fleet.
    """

    def __init__(self, frame: Frame, services: Services) -> None:
        self._frame, self._services = frame, services
        self._shown: FleetView | None = None

    async def build(self) -> None:
        """Make the page."""
        with Tag("div", classes="page-head"):
            with Tag("div", classes="page-head-title"):
                Tag("h1", "Fleet")
                self._summary = Tag("p", "", "muted", role="status")
            self._add_flower()
        self._workers = Tag("section", classes="fleet", aria_label="Workers")
        with panel("Queues", "A job goes to the smallest class that holds it."):
            self._queues = Tag("div", classes="table-box")
        await self._refresh()
        ui.timer(_ASK_EVERY_S, self._refresh)

    def _add_flower(self) -> None:
        host = urlsplit(str(ui.context.client.request.base_url)).hostname or ""
        address = flower_address(self._services.settings, host)
        if self._frame.caller.tenant is None and address is not None:
            Tag("a", "Open Flower", "btn", href=address, target="_blank", rel="noopener noreferrer")

    async def _refresh(self) -> None:
        try:
            view = await self._services.fleet.get(self._frame.caller)
        except (ConsoleError, JobError):
            return  # asked again in a moment
        if view == self._shown:
            return
        self._shown = view
        gpus = [it for it in view.workers if it.memory_class is not None]
        busy = sum(it.busy for it in gpus)
        out = sum(it.quarantined for it in view.workers)
        told = f"{count(len(gpus), 'GPU')}, {busy} at work"
        self._summary.say(told + (f", {out} quarantined" if out else ""))
        self._workers.clear()
        with self._workers:
            if not view.workers:
                with Tag("div", classes="empty"):
                    Tag("p", "No worker is live. Start one with: training-worker worker")
            for worker in sorted(view.workers, key=_rank):
                self._show_worker(worker)
        self._queues.clear()
        with self._queues:
            _show_queues(view.queues)

    def _show_worker(self, worker: WorkerView) -> None:
        state = "busy" if worker.busy else "idle"
        if worker.quarantined:
            state = "quarantined"
        with Tag("article", classes="gpu", aria_label=worker.name):
            with Tag("div", classes="gpu-head"):
                with Tag("div"):
                    Tag("h2", _title(worker), style="font-size: 16px; line-height: 22px")
                    Tag("p", worker.name, "muted small break")
                Tag("span", state, f"status status-{state}")
            with Tag("dl", classes="facts small"):
                if worker.memory_class is not None:
                    fact("Class", f"{worker.memory_class.removesuffix('gb')} GB")
                    fact("Memory", _memory(worker))
                fact("Serves", ", ".join(worker.queues))
            if worker.activity is not None:
                with Tag("p", classes="small"):
                    Tag("span", "Runs ", "muted")
                    if worker.job_id is None:
                        Tag("span", worker.activity)
                    else:
                        Tag(
                            "a",
                            worker.activity,
                            href=self._frame.link(f"/jobs/{quote(worker.job_id)}"),
                        )
            if worker.quarantined:
                reason = worker.quarantine_reason or "an operator has been told why"
                Tag("p", f"Takes no jobs: {reason}", "note note-warning small")


def _rank(worker: WorkerView) -> tuple[int, str]:
    """The largest first."""
    return -int((worker.memory_class or "0gb").removesuffix("gb")), worker.name


def flower_address(settings: Settings, host: str) -> str | None:
    """Where somebody who asked for ``host`` finds Flower; None where it cannot be reached."""
    if not settings.flower_port:
        return None
    path = f"/{settings.flower_prefix}" if settings.flower_prefix else ""
    if settings.console_url and path:
        # The proxy before the console shows Flower, too.
        parts = urlsplit(settings.console_url)
        return f"{parts.scheme}://{parts.netloc}{path}"
    # Flower listens on its own machine, as a rule.
    local = host in ("127.0.0.1", "localhost", "::1")
    return f"http://127.0.0.1:{settings.flower_port}{path}" if local else None


def _title(worker: WorkerView) -> str:
    if worker.memory_class is None:
        return "CPU"
    if worker.gpu:
        return worker.gpu
    return f"Emulated {worker.memory_class.removesuffix('gb')} GB GPU"


def _memory(worker: WorkerView) -> str:
    return f"{worker.gpu_mib / 1024:.1f} GiB" if worker.gpu_mib else "emulated on the CPU"


def _show_queues(queues: tuple[QueueView, ...]) -> None:
    with Tag("table", classes="table table-rows"):
        Tag("caption", "Queues", "sr-only")
        with Tag("thead"), Tag("tr"):
            for heading, look in (
                ("Queue", ""), ("Waiting", "right"), ("Usual wait", "right"), ("Served", ""),
            ):  # fmt: skip
                Tag("th", heading, look, scope="col")
        with Tag("tbody"):
            for queue in queues:
                with Tag("tr"):
                    Tag("td", queue.name, "wide", style="font-weight: 500")
                    Tag("td", _waiting(queue), "right", data_label="Waiting")
                    wait = queue.median_wait_s
                    usual = "not known yet" if wait is None else span(wait)
                    Tag("td", usual, "right muted", data_label="Usual wait")
                    with Tag("td", classes="wide"):
                        if queue.unserved_reason is None:
                            Tag("span", "by live workers", "muted")
                        else:
                            look = "" if queue.waiting else "muted"
                            Tag(
                                "span",
                                queue.unserved_reason if queue.waiting else "by nobody",
                                look,
                            )


def _waiting(queue: QueueView) -> str:
    if queue.waiting_by_tenant is not None and len(queue.waiting_by_tenant) > 1:
        by_tenant = ", ".join(
            f"{name} {number}" for name, number in queue.waiting_by_tenant.items()
        )
        return f"{queue.waiting} ({by_tenant})"
    own = (
        f" ({queue.own_waiting} yours)"
        if queue.waiting_by_tenant is None and queue.own_waiting
        else ""
    )
    return f"{queue.waiting}{own}"
