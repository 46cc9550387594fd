"""The fleet page: workers and what they run, queues and how many jobs wait."""

from urllib.parse import quote, urlsplit

from nicegui import ui

from console.errors import ConsoleError
from console.pages.elements import Tag, fact, panel
from console.pages.formatting import class_text, count, span
from console.pages.layout import Frame
from console.services.fleet import FleetView, QueueView, WorkerView
from console.services.services import Services
from tasks.access.api_keys import Scope
from tasks.errors import JobError
from tasks.settings.settings import Settings

_REFRESH_INTERVAL_S = 3.0


class FleetPage:
    """The page.

    Args:
        frame: Frame of the page.
        services: The services.
    """

    def __init__(self, frame: Frame, services: Services) -> None:
        self._frame, self._services = frame, services
        self._shown: FleetView | None = None

    async def build(self) -> None:
        """Build the page."""
        with Tag("div", classes="page-head"):
            with Tag("div", classes="page-head-title"):
                Tag("h1", "Fleet")
                self._summary = Tag("p", "", "muted", role="status")
            self._add_flower_link()
        self._workers = Tag("section", classes="fleet", aria_label="Workers")
        with panel("Queues", "A job goes to the smallest memory class that holds it."):
            self._queues = Tag("div", classes="table-box")
        await self._refresh()
        ui.timer(_REFRESH_INTERVAL_S, self._refresh)

    def _add_flower_link(self) -> None:
        host = urlsplit(str(ui.context.client.request.base_url)).hostname or ""
        address = flower_address(self._services.settings, host)
        if self._frame.caller.is_operator and address is not None:
            Tag("a", "Open Flower", "btn", href=address, target="_blank", rel="noopener noreferrer")

    async def _refresh(self) -> None:
        try:
            view = await self._services.fleet.get(self._frame.allowed(Scope.JOBS_READ))
        except (ConsoleError, JobError):
            return  # the next refresh retries
        if view == self._shown:
            return
        self._shown = view
        gpus = [worker for worker in view.workers if worker.memory_class is not None]
        busy = sum(gpu.busy for gpu in gpus)
        quarantined = sum(worker.quarantined for worker in view.workers)
        summary = f"{count(len(gpus), 'GPU')}, {busy} busy"
        self._summary.update_text(summary + (f", {quarantined} quarantined" if quarantined else ""))
        self._workers.clear()
        with self._workers:
            if not view.workers:
                with Tag("div", classes="empty"):
                    Tag("p", "There are no live workers. Start one with: training-worker worker")
            for worker in sorted(view.workers, key=_largest_first):
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
                    Tag("h2", _title(worker))
                    Tag("p", worker.name, "muted small break")
                Tag("span", state, f"status status-{state}")
            with Tag("dl", classes="facts small"):
                if worker.memory_class is not None:
                    fact("Class", class_text(worker.memory_class, emulated=worker.emulated))
                    fact("Memory", _memory(worker))
                fact("Serves", ", ".join(worker.queues))
            if worker.activity is not None:
                with Tag("p", classes="small"):
                    Tag("span", "Runs ", "muted")
                    if worker.job_id is None:
                        Tag("span", worker.activity)
                    else:
                        link = self._frame.link(f"/jobs/{quote(worker.job_id)}")
                        Tag("a", worker.activity, href=link)
            if worker.quarantined:
                reason = worker.quarantine_reason or "operators can see the reason"
                Tag("p", f"Takes no jobs: {reason}", "note note-warning small")


def flower_address(settings: Settings, host: str) -> str | None:
    """Return Flower's address for a browser that opened ``host``; None when out of its reach."""
    if not settings.flower_port:
        return None
    path = f"/{settings.flower_prefix}" if settings.flower_prefix else ""
    if settings.console_url and path:
        # The proxy in front of the console also serves Flower.
        parts = urlsplit(settings.console_url)
        return f"{parts.scheme}://{parts.netloc}{path}"
    # Without a proxy, Flower listens on its own machine only.
    is_local = host in ("127.0.0.1", "localhost", "::1")
    return f"http://127.0.0.1:{settings.flower_port}{path}" if is_local else None


def _largest_first(worker: WorkerView) -> tuple[int, str]:
    return -int((worker.memory_class or "0gb").removesuffix("gb")), worker.name


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
            for heading, classes in (
                ("Queue", ""), ("Waiting", "right"), ("Oldest", "right"),
                ("Median wait", "right"), ("Expected wait", "right"), ("Served", ""),
            ):  # fmt: skip
                Tag("th", heading, classes, scope="col")
        with Tag("tbody"):
            for queue in queues:
                _show_queue(queue)


def _show_queue(queue: QueueView) -> None:
    with Tag("tr"):
        Tag("td", queue.name, "wide strong")
        Tag("td", _waiting(queue), "right", data_label="Waiting")
        oldest = "" if queue.oldest_wait_s is None else span(queue.oldest_wait_s)
        Tag("td", oldest, "right muted", data_label="Oldest")
        wait = "unknown" if queue.median_wait_s is None else span(queue.median_wait_s)
        Tag("td", wait, "right muted", data_label="Median wait")
        expected = "unknown" if queue.expected_wait_s is None else span(queue.expected_wait_s)
        Tag("td", expected, "right muted", data_label="Expected wait")
        with Tag("td", classes="wide"):
            if queue.unserved_reason is None:
                Tag("span", "by live workers", "muted")
            elif queue.waiting:
                Tag("span", queue.unserved_reason)
            else:
                Tag("span", "by no worker", "muted")


def _waiting(queue: QueueView) -> str:
    tenants = queue.waiting_by_tenant
    if tenants is not None and len(tenants) > 1:
        by_tenant = ", ".join(f"{name} {number}" for name, number in tenants.items())
        return f"{queue.waiting} ({by_tenant})"
    own = f" ({queue.own_waiting} yours)" if tenants is None and queue.own_waiting else ""
    return f"{queue.waiting}{own}"
