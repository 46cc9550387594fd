"""The API's application, mounted at ``/v1``."""

from fastapi import FastAPI, Response
from fastapi.responses import HTMLResponse

from console.api import audit, captions, catalog, datasets, events, files, jobs, uploads, webhooks
from console.api.docs_page import POLICY, docs_page
from console.api.openapi import TAGS, api_document, document_text, operation_id, product_version
from console.api.problems import add_problem_handlers
from console.services.services import Services

_DESCRIPTION = """
Upload a dataset, submit a job, follow its events and download what it has published.

Errors are problem documents of RFC 9457 (`application/problem+json`). `code` says what failed,
`retryable` whether the same request may succeed later, and `errors` lists every problem with its
place and its remedy. Clients ignore fields and events that they do not know, of later versions.
"""


def make_api(services: Services | None) -> FastAPI:
    """Return the API's application.

    Args:
        services: The services; None for an application that is only described.
    """
    api = FastAPI(
        title="training-worker",
        version=product_version(),
        summary="Fine-tune image models on a fleet of GPUs.",
        description=_DESCRIPTION.strip(),
        license_info={"name": "Apache-2.0", "identifier": "Apache-2.0"},
        servers=[
            {
                "url": "{console}/v1",
                "description": "The console.",
                "variables": {
                    "console": {
                        "default": "http://127.0.0.1:8080",
                        "description": "Address of the console.",
                    }
                },
            }
        ],
        openapi_tags=[{"name": name, "description": text} for name, text in TAGS.items()],
        generate_unique_id_function=operation_id,
        root_path_in_servers=False,
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
    )
    api.state.services = services
    add_problem_handlers(api)
    for module in (jobs, events, files, webhooks, uploads, datasets, captions, catalog, audit):
        api.include_router(module.router)
    # Made once: anyone may ask for them.
    document = api_document(api)
    text, page = document_text(document), docs_page(document)

    @api.get("/openapi.json", include_in_schema=False)
    async def openapi() -> Response:
        return Response(text, media_type="application/json")

    @api.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        return HTMLResponse(page, headers={"Content-Security-Policy": POLICY})

    return api
