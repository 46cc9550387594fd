"""The pages, put on the application."""

from pathlib import Path

from fastapi import FastAPI, Request
from fastapi.responses import RedirectResponse, Response
from nicegui import ui
from starlette.staticfiles import StaticFiles

from console.errors import ConsoleError
from console.login import COOKIE
from console.pages.fleet_page import FleetPage
from console.pages.form.draft import Draft
from console.pages.form.drafts import Drafts
from console.pages.form.new_job import NewJob
from console.pages.form.upload_limit import UploadLimit
from console.pages.job.job_page import JobPage
from console.pages.jobs_list import JobsList
from console.pages.layout import ASSETS, Frame, prefix_of
from console.pages.login_page import add_login, login_address
from console.pages.markup import Tag
from console.services.services import Services
from console.views import PresetView
from tasks.errors import JobError

_FAVICON = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 18 18">'
    '<rect width="18" height="18" rx="5" fill="#1f56c3"/>'
    '<path d="M4 9h2v5H4zM8 6h2v8H8zM12 4h2v10h-2z" fill="#fff"/></svg>'
)
_FIRST_TYPE = "FLUX_LORA"


def add_pages(app: FastAPI, services: Services) -> None:
    """Put the console's pages on the application, below all that is on it already."""
    settings = services.settings
    drafts = Drafts(settings.resolved_scratch_dir / "drafts", settings.upload_max_bytes)
    app.mount(ASSETS, StaticFiles(directory=Path(__file__).parent / "assets"))
    app.add_middleware(UploadLimit, most_bytes=settings.upload_max_bytes)
    add_login(app)
    _add_job_pages(services, drafts)
    _add_new_job(services, drafts)
    ui.run_with(
        app,
        title="training-worker",
        favicon=_FAVICON,
        language="en-US",
        tailwind=False,
        binding_refresh_interval=None,
        # As long as a phone may sleep or a train be in a tunnel, and the page is as it was.
        reconnect_timeout=60.0,
        show_welcome_message=False,
    )


def _add_job_pages(services: Services, drafts: Drafts) -> None:
    @ui.page("/", response_timeout=10)
    async def home(request: Request) -> Response | None:
        return RedirectResponse(f"{prefix_of(request)}/jobs")

    @ui.page("/jobs", response_timeout=10)
    async def jobs(request: Request, search: str = "", status: str = "") -> Response | None:
        frame = _frame(request, services)
        if frame is None:
            return RedirectResponse(login_address(request))
        with frame.page("Jobs", "/jobs"):
            await JobsList(frame, services, search, status).build()
        return None

    @ui.page("/jobs/{job_id}", response_timeout=10)
    async def job(request: Request, job_id: str) -> Response | None:
        frame = _frame(request, services)
        if frame is None:
            return RedirectResponse(login_address(request))
        try:
            view = await services.jobs.get(frame.caller, job_id)
        except (ConsoleError, JobError) as error:
            _show_missing(frame, str(error))
            return None
        with frame.page(view.name, "/jobs"):
            JobPage(frame, services, view).build()
        return None

    @ui.page("/fleet", response_timeout=10)
    async def fleet(request: Request) -> Response | None:
        frame = _frame(request, services)
        if frame is None:
            return RedirectResponse(login_address(request))
        with frame.page("Fleet", "/fleet"):
            await FleetPage(frame, services).build()
        return None


def _add_new_job(services: Services, drafts: Drafts) -> None:
    @ui.page("/new", response_timeout=10)
    async def new(request: Request, draft: str = "", again: str = "") -> Response | None:
        frame = _frame(request, services)
        if frame is None:
            return RedirectResponse(login_address(request))
        presets = await services.fleet.presets()
        begun = drafts.find(frame.caller, draft)
        if begun is None:
            try:
                first = await _first(frame, services, presets, again)
            except (ConsoleError, JobError) as error:
                _show_missing(frame, str(error))
                return None
            kept = drafts.begin(frame.caller, first)
            # With its id in the address, a page that is loaded anew shows what was filled in.
            return RedirectResponse(frame.link(f"/new?draft={kept}"))

        def started(job_id: str) -> None:
            drafts.end(draft)
            ui.navigate.to(frame.link(f"/jobs/{job_id}"))

        with frame.page("New job", "/new"):
            NewJob(frame, services, begun, presets, started).build()
        return None


async def _first(
    frame: Frame, services: Services, presets: tuple[PresetView, ...], again: str
) -> Draft:
    """What the form begins with: a job that was, or what suits the fleet."""
    if again:
        return Draft.of(await services.jobs.document(frame.caller, again))
    of_type = [it for it in presets if it.type == _FIRST_TYPE]
    best = next((it for it in of_type if it.recommended), of_type[0])
    return Draft(_FIRST_TYPE, best.name)


def _frame(request: Request, services: Services) -> Frame | None:
    """The page's frame; None for whoever has not logged in."""
    cookie = request.cookies.get(COOKIE)
    if services.sessions.find(cookie) is None:
        return None
    return Frame(request, lambda: services.sessions.find(cookie))


def _show_missing(frame: Frame, problem: str) -> None:
    ui.context.client.status_code = 404
    with frame.page("Not found"), Tag("div", classes="panel empty"):
        Tag("h1", "Not found")
        Tag("p", f"{problem[:1].upper()}{problem[1:]}.", "break")
        Tag("a", "All jobs", "btn", href=frame.link("/jobs"))
