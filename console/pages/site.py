"""The pages of the application, by path."""

import re
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated

from fastapi import FastAPI, Query, Request
from fastapi.responses import RedirectResponse, Response
from nicegui import app as nicegui_app
from nicegui import ui
from starlette.staticfiles import StaticFiles

from console.errors import ConsoleError, ForbiddenError, NotFoundError, TooManyError
from console.login import COOKIE
from console.pages.compare_page import ComparePage
from console.pages.dataset_page import NEW, DatasetPage
from console.pages.datasets_page import DatasetsPage
from console.pages.elements import Tag
from console.pages.fleet_page import FleetPage
from console.pages.form.begun_drafts import BegunDrafts
from console.pages.form.draft import Draft
from console.pages.form.drafts import Drafts
from console.pages.form.gallery import THUMBNAILS
from console.pages.form.new_job import NewJob
from console.pages.form.working_copy import archive_of
from console.pages.formatting import sentence
from console.pages.job.job_page import JobPage
from console.pages.jobs_list import JobsList, ListFilters
from console.pages.layout import ASSETS, Frame, prefix_of, text_answer
from console.pages.login_page import add_login_page
from console.scopes import check_scope
from console.services.images.dataset_views import SavedDatasetView
from console.services.jobs.comparison import MAX_JOBS
from console.services.services import Services
from console.services.threads import in_thread
from console.views import PresetView
from tasks.access.api_keys import Caller, Scope
from tasks.errors import JobError

_FAVICON = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 18 18">'
    '<rect width="18" height="18" rx="5" fill="#1f56c3"/>'
    '<path d="M4 9h2v5H4zM8 6h2v8H8zM12 4h2v10h-2z" fill="#fff"/></svg>'
)
_FIRST_TYPE = "FLUX_LORA"
_RESPONSE_TIMEOUT_S = 10
_THUMBNAIL_KEY = re.compile(r"[0-9a-f]{32}")


def add_pages(app: FastAPI, services: Services) -> None:
    """Add the console's pages to the application, below the routes that it has."""
    settings = services.settings
    folder = settings.resolved_console_dir / "drafts"
    drafts = Drafts(services.shared, folder, settings.upload_max_bytes)
    app.mount(ASSETS, StaticFiles(directory=Path(__file__).parent / "assets"))
    add_login_page(app)

    @app.get("/", include_in_schema=False)
    async def home(request: Request) -> Response:
        return RedirectResponse(f"{prefix_of(request)}/jobs")

    _add_job_pages(services)
    _add_compare_page(services)
    _add_form(services, drafts)
    _add_dataset_pages(services, drafts)
    _add_thumbnails(app, drafts)
    ui.run_with(
        app,
        title="training-worker",
        favicon=_FAVICON,
        language="en-US",
        tailwind=False,
        binding_refresh_interval=None,
        # A phone may sleep and a train pass a tunnel for that long; the page is unchanged then.
        reconnect_timeout=60.0,
        show_welcome_message=False,
    )
    # NiceGUI would build a page.
    nicegui_app.add_exception_handler(404, _answer_not_found)


def _add_job_pages(services: Services) -> None:
    @ui.page("/jobs", response_timeout=_RESPONSE_TIMEOUT_S)
    async def jobs(
        request: Request,
        search: str = "",
        status: str = "",
        type: str = "",
        days: str = "",
        tenant: str = "",
    ) -> Response | None:
        async def build(frame: Frame) -> None:
            filters = ListFilters(search, status, type, days, tenant)
            with frame.page("Jobs", "/jobs"):
                await JobsList(frame, services, filters).build()

        return await _with_frame(request, services, build, Scope.JOBS_READ)

    @ui.page("/jobs/{job_id}", response_timeout=_RESPONSE_TIMEOUT_S)
    async def job(request: Request, job_id: str) -> Response | None:
        async def build(frame: Frame) -> None:
            try:
                view = await services.jobs.get(frame.allowed(Scope.JOBS_READ), job_id)
            except (ConsoleError, JobError) as error:
                _show_not_found(frame, str(error))
                return
            with frame.page(view.title or view.name, "/jobs"):
                emulated = await services.fleet.emulated_queues()
                JobPage(frame, services, view, emulated).build()

        return await _with_frame(request, services, build, Scope.JOBS_READ)

    @ui.page("/fleet", response_timeout=_RESPONSE_TIMEOUT_S)
    async def fleet(request: Request) -> Response | None:
        async def build(frame: Frame) -> None:
            with frame.page("Fleet", "/fleet"):
                await FleetPage(frame, services).build()

        return await _with_frame(request, services, build, Scope.JOBS_READ)


def _add_compare_page(services: Services) -> None:
    @ui.page("/compare", response_timeout=_RESPONSE_TIMEOUT_S)
    async def compare(
        request: Request,
        job: Annotated[list[str], Query(max_length=2 * MAX_JOBS)] = [],  # noqa: B006 - FastAPI copies it
    ) -> Response | None:
        async def build(frame: Frame) -> None:
            try:
                comparison = await services.comparisons.compare(
                    frame.allowed(Scope.JOBS_READ),
                    job,
                    with_samples=frame.caller.allows(Scope.FILES),
                )
            except (ConsoleError, JobError) as error:
                _show_not_found(frame, str(error))
                return
            with frame.page("Compare jobs", "/jobs"):
                await ComparePage(frame, services, comparison).build()

        return await _with_frame(request, services, build, Scope.JOBS_READ)


def _add_form(services: Services, drafts: Drafts) -> None:
    @ui.page("/new", response_timeout=_RESPONSE_TIMEOUT_S)
    async def new(
        request: Request, draft: str = "", again: str = "", dataset: str = ""
    ) -> Response | None:
        async def build(frame: Frame) -> Response | None:
            presets = await services.fleet.presets()
            opened = await in_thread(drafts.find)(frame.caller, draft)
            if opened is None:
                try:
                    first = await _first_draft(frame, services, presets, again)
                    await _add_dataset(frame, services, first, dataset)
                except (ConsoleError, JobError) as error:
                    _show_not_found(frame, str(error))
                    return None
                draft_id = await in_thread(drafts.open)(frame.caller, first)
                # With the id in its address, a reloaded page shows what the user filled in.
                return RedirectResponse(frame.link(f"/new?draft={draft_id}"))

            async def save() -> None:
                await in_thread(drafts.save)(opened)

            async def started(job_id: str) -> None:
                await in_thread(drafts.close)(opened)
                ui.navigate.to(frame.link(f"/jobs/{job_id}"))

            async def discard(draft_id: str) -> None:
                other = await in_thread(drafts.find)(frame.caller, draft_id)
                if other is not None:
                    await in_thread(drafts.close)(other)

            is_begun = await in_thread(lambda: opened.is_begun)()
            begun = [] if is_begun else await in_thread(drafts.begun)(frame.caller)
            with frame.page("New job", "/new"):
                BegunDrafts(frame, begun, discard)
                NewJob(frame, services, opened, presets, save, started).build()
            return None

        return await _with_frame(request, services, build, Scope.JOBS_WRITE, Scope.UPLOADS)


def _add_dataset_pages(services: Services, drafts: Drafts) -> None:
    @ui.page("/datasets", response_timeout=_RESPONSE_TIMEOUT_S)
    async def datasets(request: Request) -> Response | None:
        async def build(frame: Frame) -> None:
            with frame.page("Datasets", "/datasets"):
                await DatasetsPage(frame, services).build()

        return await _with_frame(request, services, build, Scope.UPLOADS)

    @ui.page("/datasets/{dataset_id}", response_timeout=_RESPONSE_TIMEOUT_S)
    async def dataset(request: Request, dataset_id: str, draft: str = "") -> Response | None:
        async def build(frame: Frame) -> Response | None:
            try:
                saved = None
                if dataset_id != NEW:
                    saved = await services.datasets.view(frame.caller, dataset_id)
            except (ConsoleError, JobError) as error:
                _show_not_found(frame, str(error))
                return None
            opened = await in_thread(drafts.find)(frame.caller, draft)
            if opened is None or opened.dataset_id != dataset_id:
                draft_id = await in_thread(_edit_draft)(drafts, frame.caller, saved)
                return RedirectResponse(frame.link(f"/datasets/{dataset_id}?draft={draft_id}"))

            async def save() -> None:
                await in_thread(drafts.save)(opened)

            async def close(_saved_id: str = "") -> None:
                await in_thread(drafts.close)(opened)
                ui.navigate.to(frame.link("/datasets"))

            with frame.page("Dataset" if saved is None else saved.name, "/datasets"):
                DatasetPage(frame, services, opened, save, saved, close, close).build()
            return None

        return await _with_frame(request, services, build, Scope.UPLOADS)


def _edit_draft(drafts: Drafts, caller: Caller, saved: SavedDatasetView | None) -> str:
    """Return the id of a draft that edits a saved dataset, or makes a new one."""
    first = Draft(_FIRST_TYPE)
    first.name = "" if saved is None else saved.name
    archive = "" if saved is None else f"upload:{saved.upload}"
    if archive:
        first.dataset = {"type": "ARCHIVE", "archive": archive}
    dataset_id = NEW if saved is None else saved.id
    begun = drafts.edit_of(caller, dataset_id, archive)
    return begun or drafts.open(caller, first, dataset_id)


def _add_thumbnails(app: FastAPI, drafts: Drafts) -> None:
    @app.get(THUMBNAILS + "/{draft_id}/{key}", include_in_schema=False)
    async def thumbnail(request: Request, draft_id: str, key: str) -> Response:
        caller = check_scope(request.state.caller, Scope.UPLOADS)
        opened = await in_thread(drafts.find)(caller, draft_id)
        if opened is None or not _THUMBNAIL_KEY.fullmatch(key):
            raise NotFoundError("there is no such image")
        return await in_thread(_thumbnail)(opened.thumbnails / f"{key}.jpg")


async def _with_frame(
    request: Request,
    services: Services,
    build: Callable[[Frame], Awaitable[Response | None]],
    *scopes: Scope,
) -> Response | None:
    """Build a page for the session that the gate has found, in its account's share of pages.

    Args:
        request: The request.
        services: The services.
        build: Builds the page.
        scopes: What the session's key must have.
    """
    cookie, account = request.cookies[COOKIE], request.state.caller.account
    pages = services.open_pages
    try:
        pages.take(account)
    except TooManyError as error:
        return text_answer(error)
    sessions = services.sessions
    sessions.open_page(cookie)

    def close() -> None:
        sessions.close_page(cookie)
        pages.give_back(account)

    ui.context.client.on_delete(close)
    await in_thread(sessions.find)(cookie)
    frame = Frame(request, lambda: sessions.of_page(cookie))
    try:
        for scope in scopes:
            frame.allowed(scope)
    except ForbiddenError as error:
        _show_problem(frame, 403, "Not allowed", error.message)
        return None
    return await build(frame)


async def _first_draft(
    frame: Frame, services: Services, presets: tuple[PresetView, ...], again: str
) -> Draft:
    """Return what the form starts with: an earlier job, or the best preset for the fleet."""
    if again:
        return Draft.of(await services.jobs.document(frame.allowed(Scope.JOBS_READ), again))
    of_type = [preset for preset in presets if preset.type == _FIRST_TYPE]
    best = next((preset for preset in of_type if preset.recommended), of_type[0])
    return Draft(_FIRST_TYPE, best.name)


async def _add_dataset(frame: Frame, services: Services, draft: Draft, dataset_id: str) -> None:
    """Let a form start with a saved dataset, if one is named.

    Raises:
        NotFoundError: The caller sees no dataset of this id.
    """
    if dataset_id:
        saved = await services.datasets.view(frame.allowed(Scope.UPLOADS), dataset_id)
        draft.dataset = archive_of(saved)


def _thumbnail(path: Path) -> Response:
    try:
        # Its name changes with the image.
        headers = {"Cache-Control": "private, max-age=86400, immutable"}
        return Response(path.read_bytes(), media_type="image/jpeg", headers=headers)
    except OSError as error:
        raise NotFoundError("there is no such image") from error


def _show_not_found(frame: Frame, problem: str) -> None:
    _show_problem(frame, 404, "Not found", problem)


def _show_problem(frame: Frame, status: int, title: str, problem: str) -> None:
    ui.context.client.status_code = status
    with frame.page(title), Tag("div", classes="panel empty"):
        Tag("h1", title)
        Tag("p", sentence(problem), "break")
        Tag("a", "All jobs", "btn", href=frame.link("/jobs"))


async def _answer_not_found(_request: Request, _error: Exception) -> Response:
    return text_answer(NotFoundError("there is no such page; the jobs are at /jobs"))
