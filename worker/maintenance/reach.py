"""The checks of ``doctor`` on what this machine reaches: its disks, the Hub and the console."""

import shutil
import ssl
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path
from urllib.parse import unquote, urlsplit

import httpx2
from huggingface_hub import constants, get_token

from tasks.jobs.presets import get_flux_lora_config
from tasks.settings.settings import Settings
from worker.local.ports import console_answers
from worker.maintenance.finding import Finding, gigabytes

_TIMEOUT_S = 3.0
# Of a FLUX LoRA: its cache, the kept checkpoints and the results.
_JOB_BYTES = 10e9
# In the layout of diffusers, with both text encoders.
_BASE_MODEL_BYTES = 34e9
_LICENCE_FILE = "model_index.json"
_REDIRECTS = (HTTPStatus.FOUND, HTTPStatus.TEMPORARY_REDIRECT)


def check_disks(settings: Settings) -> Iterator[Finding]:
    """Check the free space of a store on this machine, and of the Hub's cache."""
    url = urlsplit(settings.resolved_store_url)
    if url.scheme == "file":
        needs = f"a job keeps up to {gigabytes(_JOB_BYTES)} there, besides its dataset"
        yield _space("disk of the store", Path(unquote(url.path)), _JOB_BYTES, needs)
    cache = Path(constants.HF_HUB_CACHE)
    needs = f"FLUX.1-dev takes {gigabytes(_BASE_MODEL_BYTES)}, unless it is there already"
    yield _space("disk of base models", cache, _BASE_MODEL_BYTES, needs)


def _space(subject: str, folder: Path, needed_bytes: float, needs: str) -> Finding:
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(existing).free
    found = f"{gigabytes(free)} free in {folder}"
    if free < needed_bytes:
        return Finding("warning", subject, found, f"free some, or use another disk: {needs}")
    return Finding("ok", subject, f"{found}; {needs}")


def check_hub() -> Finding:
    """Check whether this machine may download FLUX's default base model, which is gated."""
    subject, model = "Hub", get_flux_lora_config()["model"]
    if constants.HF_HUB_OFFLINE:
        return Finding("ok", subject, "HF_HUB_OFFLINE is set: base models come from the cache")
    endpoint, token = constants.ENDPOINT, get_token()
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        answer = httpx2.head(
            f"{endpoint}/{model}/resolve/main/{_LICENCE_FILE}", headers=headers, timeout=_TIMEOUT_S
        )
    except (httpx2.HTTPError, httpx2.InvalidURL, UnicodeError) as error:
        remedy = "without it, jobs name base models in its cache or in a folder"
        found = f"{endpoint} does not answer ({type(error).__name__})"
        return Finding("warning", subject, found, remedy)
    if answer.status_code == HTTPStatus.OK or answer.status_code in _REDIRECTS:
        return Finding("ok", subject, f"{model} can be downloaded")
    page = f"{endpoint}/{model}"
    if token is None:
        remedy = f"accept its licence at {page}, then run 'hf auth login'"
        return Finding("warning", subject, f"{model} needs a login, and there is no token", remedy)
    if answer.status_code == HTTPStatus.UNAUTHORIZED:
        remedy = "run 'hf auth login' with a new one"
        return Finding("warning", subject, "refuses the token of this machine", remedy)
    if answer.status_code == HTTPStatus.FORBIDDEN:
        remedy = f"accept it at {page}, or give the token the right to read gated repositories"
        return Finding("warning", subject, f"the licence of {model} is not accepted", remedy)
    found = f"{endpoint} answers with {answer.status_code} for {model}"
    return Finding("warning", subject, found, "retry later")


def check_console(settings: Settings) -> Iterator[Finding]:
    """Check that the console of this machine answers, and its public address with TLS."""
    if settings.console_port:
        if console_answers(settings.console_address, settings.console_port):
            found = f"answers on {settings.console_address}:{settings.console_port}"
        else:
            found = "does not run on this machine"
        yield Finding("ok", "console", found)
    if settings.console_url is None:
        return
    address = settings.console_base_url
    if not address.startswith("https://"):
        remedy = "put a proxy with TLS in front: keys and images cross the network readably"
        yield Finding("warning", "console address", f"{address} is not encrypted", remedy)
        return
    try:
        answer = httpx2.get(f"{address}/v1/health", timeout=_TIMEOUT_S)
    except httpx2.HTTPError as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, ssl.SSLError):
            cause = cause.__cause__ or cause.__context__
        if cause is None:
            remedy = "start the proxy, or correct TRAINING_CONSOLE_URL"
            yield Finding("warning", "console address", f"{address} does not answer", remedy)
            return
        found = f"the certificate of {address} is not valid: {cause}"
        yield Finding(
            "error", "console address", found, "renew it, or name its CA in SSL_CERT_FILE"
        )
        return
    if answer.status_code == HTTPStatus.OK:
        yield Finding("ok", "console address", f"{address} answers, with a valid certificate")
    else:
        found = f"{address} answers with {answer.status_code}"
        yield Finding("warning", "console address", found, "check the proxy's target and path")
