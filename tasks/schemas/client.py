"""Client of the console's HTTP API in one file, made to be copied: standard library only.

    client = Client("http://127.0.0.1:8080", "twk_...")
    upload = client.upload(Path("images.zip"))
    job = client.submit({"preset": ..., "training": {...: f"upload:{upload}"}})
    for event in client.follow(job["id"]):
        print(event)
    client.download(job["id"], Path("results"))

Every call repeats what may succeed soon, and resumes what was interrupted. What the console
refuses is an ``ApiError``. Jobs, events and files are the mappings that ``openapi.json`` describes.
"""

import base64
import hashlib
import json
import os
import random
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from http.client import HTTPException, HTTPResponse
from pathlib import Path, PurePosixPath
from typing import IO, Any, TypeVar
from urllib.parse import quote, urlencode, urlsplit

T = TypeVar("T")

_TUS = {"Tus-Resumable": "1.0.0"}
_CHUNK_BYTES = 8 << 20
_READ_BYTES = 1 << 20
_MAX_PAUSE_S = 30.0
# A quota is renewed next month: longer delays than this are the caller's to wait for.
_MAX_RETRY_AFTER_S = 120.0
# What proxies answer while the console restarts.
_RETRYABLE_STATUSES = (429, 502, 503, 504)
_LOST = (OSError, HTTPException)


@dataclass(frozen=True)
class Problem:
    """One thing wrong with a request.

    Attributes:
        location: The field (``training.lora_rank_dim``), header or file.
        message: What is wrong.
        remedy: What to do.
        code: The kind of problem, for programs.
    """

    location: str
    message: str
    remedy: str
    code: str = "invalid"


class ApiError(Exception):
    """The console refused a request.

    Args:
        status: The HTTP status.
        code: Why, for programs: ``invalid_job``, ``not_found``, ...
        message: Why, for people.
        problems: Every problem.
        retryable: Whether the same request may succeed later.
        retry_after_s: When to send it again, if the console says it.
    """

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        problems: tuple[Problem, ...] = (),
        *,
        retryable: bool = False,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.problems = status, code, message, problems
        self.retryable, self.retry_after_s = retryable, retry_after_s


class JobFailedError(Exception):
    """A job failed or was cancelled.

    Args:
        job: The job.
    """

    def __init__(self, job: dict[str, Any]) -> None:
        self.job, error = job, job["error"] or {}
        self.code: str = error.get("code", job["status"])
        super().__init__(error.get("message", f"job {job['id']} is {job['status']}"))


class DigestError(Exception):
    """A downloaded file differs from its digest."""


class Client:
    """Client of a console.

    Args:
        url: Address of the console.
        key: An API key, ``twk_...``.
        timeout_s: How long to wait for the next bytes of a response.
        max_tries: How often to try what may succeed later; progress starts the count again.
    """

    def __init__(self, url: str, key: str, *, timeout_s: float = 60, max_tries: int = 8) -> None:
        if urlsplit(url).scheme not in ("http", "https"):
            raise ValueError(f"{url!r} is not the http address of a console")
        self._url, self._key = f"{url.rstrip('/')}/v1", key
        self._timeout_s, self._max_tries = timeout_s, max_tries
        # A redirect would send the key to another address.
        self._opener = urllib.request.build_opener(_NoRedirects)

    def preview(self, job: Mapping[str, Any], *, check_dataset: bool = True) -> dict[str, Any]:
        """Return what would happen to a job, without submitting it."""
        query = "" if check_dataset else "?check_dataset=false"
        return self._json("POST", f"/jobs:preview{query}", job)

    def submit(
        self, job: Mapping[str, Any], *, idempotency_key: str | None = None
    ) -> dict[str, Any]:
        """Submit a job and return it.

        Args:
            job: The job.
            idempotency_key: Your name for a job without an ``id``, such as an order's number: the
                same name again is the same job. Without either, only this call's repetitions are.
        """
        if idempotency_key is None and not job.get("id"):
            idempotency_key = uuid.uuid4().hex
        headers = {"Idempotency-Key": idempotency_key} if idempotency_key else {}
        return self._json("POST", "/jobs", job, headers)

    def job(self, job_id: str) -> dict[str, Any]:
        """Return a job."""
        return self._json("GET", f"/jobs/{quote(job_id, safe='')}")

    def knows(self, job_id: str) -> bool:
        """Return whether there is a job of this id."""
        try:
            self.job(job_id)
        except ApiError as error:
            if error.status != 404:
                raise
            return False
        return True

    def jobs(self, **filters: str) -> Iterator[dict[str, Any]]:
        """Yield jobs, newest first; ``filters`` are the parameters of ``GET /v1/jobs``."""
        cursor: str | None = ""
        while cursor is not None:
            query = urlencode(filters | ({"cursor": cursor} if cursor else {}))
            page = self._json("GET", f"/jobs?{query}")
            yield from page["jobs"]
            cursor = page["next_cursor"]

    def cancel(self, job_id: str, *, save: bool = False) -> dict[str, Any]:
        """Cancel a job; with ``save``, save a checkpoint first and publish it."""
        return self._change(job_id, "cancel?save=true" if save else "cancel")

    def pause(self, job_id: str) -> dict[str, Any]:
        """Pause a job; a running one saves a checkpoint."""
        return self._change(job_id, "pause")

    def resume(self, job_id: str) -> dict[str, Any]:
        """Resume a paused job from its checkpoint."""
        return self._change(job_id, "resume")

    def edit(self, job_id: str, **changes: Any) -> dict[str, Any]:
        """Change a job's ``title``, ``notes`` or ``labels``; what is left out stays."""
        return self._json("PATCH", f"/jobs/{quote(job_id, safe='')}", changes)

    def delete(self, job_id: str) -> None:
        """Delete a job that has ended, with its results; repeated without harm.

        The console may still be removing the files when this returns.
        """
        path = f"/jobs/{quote(job_id, safe='')}"
        self._retry(lambda: self._send("DELETE", path, {}).close())

    def follow(self, job_id: str, after: str = "0") -> Iterator[dict[str, Any]]:
        """Yield a job's events until it ends, across interruptions.

        Args:
            job_id: The job.
            after: The ``id`` of the event to begin after; the job's first event by default.
        """
        path = f"/jobs/{quote(job_id, safe='')}/events"
        tries = 0
        while True:
            try:
                with self._send("GET", path, {"Last-Event-ID": after}) as response:
                    if response.status == 204:
                        return
                    for event in _events_of(response):
                        after, tries = event["id"], 0
                        yield event
                        if event["kind"] == "ended":
                            return
                    raise ConnectionError("the stream of events was interrupted")
            except (ApiError, *_LOST) as error:
                tries = self._pause_before_retry(error, tries)

    def result(self, job_id: str) -> dict[str, Any]:
        """Wait for a job's end, and return the job.

        Raises:
            JobFailedError: It failed, or was cancelled.
        """
        for _ in self.follow(job_id):
            pass
        job = self.job(job_id)
        if job["status"] != "succeeded":
            raise JobFailedError(job)
        return job

    def files(self, job_id: str) -> list[dict[str, Any]]:
        """Return the published files of a job, the trained weights first."""
        path = f"/jobs/{quote(job_id, safe='')}/files"
        files: list[dict[str, Any]] = self._json("GET", path)["files"]
        return files

    def download(self, job_id: str, folder: Path) -> list[Path]:
        """Download the published files of a job, and return their paths.

        Interrupted downloads resume, also those of an earlier process.

        Raises:
            DigestError: A file differs from its digest.
        """
        return [self._download(job_id, file, folder) for file in self.files(job_id)]

    def upload(self, path: Path, *, upload_id: str | None = None) -> str:
        """Upload an archive of images, and return the upload's id.

        Args:
            path: The archive; a job names it as ``upload:ID``.
            upload_id: An interrupted upload to resume; None for a new one.
        """
        if upload_id is None:
            name = base64.b64encode(path.name.encode()).decode()
            headers = {
                **_TUS,
                "Upload-Length": str(path.stat().st_size),
                "Upload-Metadata": f"filename {name}",
            }
            location = self._retry(lambda: self._header("POST", "/uploads", headers, "Location"))
            upload_id = location.rpartition("/")[2]
        path_of_upload = f"/uploads/{quote(upload_id, safe='')}"
        with path.open("rb") as file:
            size, offset, tries = path.stat().st_size, -1, 0
            while offset < size:
                try:
                    if offset < 0:
                        offset = int(self._header("HEAD", path_of_upload, _TUS, "Upload-Offset"))
                    else:
                        offset = self._append(path_of_upload, file, offset)
                    tries = 0
                except (ApiError, *_LOST) as error:
                    if isinstance(error, ApiError) and error.status == 409:
                        # The console has not noticed yet that an earlier request is lost.
                        error.retryable = True
                    tries = self._pause_before_retry(error, tries)
                    # Some bytes may have arrived.
                    offset = -1
        return upload_id

    def _append(self, path: str, file: IO[bytes], offset: int) -> int:
        """Send the next bytes of an upload, and return its new offset."""
        file.seek(offset)
        data = file.read(_CHUNK_BYTES)
        checksum = base64.b64encode(hashlib.sha256(data).digest()).decode()
        headers = {
            **_TUS,
            "Content-Type": "application/offset+octet-stream",
            "Upload-Offset": str(offset),
            "Upload-Checksum": f"sha256 {checksum}",
        }
        return int(self._header("PATCH", path, headers, "Upload-Offset", data))

    def _download(self, job_id: str, file: Mapping[str, Any], folder: Path) -> Path:
        name = PurePosixPath(file["name"])
        if name.is_absolute() or ".." in name.parts:
            raise ValueError(f"{file['name']!r} leads out of the folder")
        target = folder / name
        part = target.with_name(f"{target.name}.part")
        part.parent.mkdir(parents=True, exist_ok=True)
        path = f"/jobs/{quote(job_id, safe='')}/files/{quote(file['name'])}"
        etag, tries = f'"{file["sha256"]}"', 0
        with part.open("ab") as output:
            offset = output.seek(0, os.SEEK_END)
            while offset < file["size"]:
                try:
                    headers = {"Range": f"bytes={offset}-", "If-Range": etag} if offset else {}
                    with self._send("GET", path, headers) as response:
                        if response.status != 206:
                            offset = output.seek(0)
                            output.truncate()
                        before = offset
                        while data := response.read(_READ_BYTES):
                            offset += output.write(data)
                            tries = 0
                    if offset == before:
                        raise ConnectionError(f"no byte of {name} arrived")
                except (ApiError, *_LOST) as error:
                    tries = self._pause_before_retry(error, tries)
        with part.open("rb") as written:
            digest = hashlib.file_digest(written, "sha256").hexdigest()
        if digest != file["sha256"]:
            part.unlink()
            raise DigestError(f"{target}: SHA-256 {digest} differs from the manifest's")
        return part.replace(target)

    def _change(self, job_id: str, action: str) -> dict[str, Any]:
        return self._json("POST", f"/jobs/{quote(job_id, safe='')}:{action}")

    def _json(
        self,
        method: str,
        path: str,
        document: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> dict[str, Any]:
        body = None if document is None else json.dumps(document).encode()
        headers = {"Content-Type": "application/json", **(headers or {})}

        def request() -> dict[str, Any]:
            with self._send(method, path, headers, body) as response:
                answer: dict[str, Any] = json.load(response)
                return answer

        return self._retry(request)

    def _header(
        self, method: str, path: str, headers: Mapping[str, str], name: str, body: bytes = b""
    ) -> str:
        """Send a request, and return a header of the response."""
        with self._send(method, path, headers, body or None) as response:
            return str(response.headers[name])

    def _retry(self, request: Callable[[], T]) -> T:
        tries = 0
        while True:
            try:
                return request()
            except (ApiError, *_LOST) as error:
                tries = self._pause_before_retry(error, tries)

    def _pause_before_retry(self, error: Exception, tries: int) -> int:
        """Wait until a request may succeed, and return the tries so far.

        Raises:
            Exception: The error, if it is final or was the last one.
        """
        asked_s = getattr(error, "retry_after_s", None)
        is_final = isinstance(error, ApiError) and not error.retryable
        if is_final or tries + 1 >= self._max_tries or (asked_s or 0) > _MAX_RETRY_AFTER_S:
            raise error
        pause_s = min(_MAX_PAUSE_S, 0.5 * 2**tries) * random.uniform(0.5, 1)
        time.sleep(pause_s if asked_s is None else asked_s)
        return tries + 1

    def _send(
        self,
        method: str,
        path: str,
        headers: Mapping[str, str],
        body: bytes | None = None,
    ) -> HTTPResponse:
        """Send a request once.

        Raises:
            ApiError: The console refused it.
            OSError: The connection was lost.
        """
        headers = {"Authorization": f"Bearer {self._key}", **headers}
        request = urllib.request.Request(self._url + path, body, headers, method=method)
        try:
            response: HTTPResponse = self._opener.open(request, timeout=self._timeout_s)
        except urllib.error.HTTPError as error:
            with error:
                raise _error_of(error) from None
        return response


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_arguments: Any) -> None:
        """Follow none: the response becomes an error."""


def _error_of(response: urllib.error.HTTPError) -> ApiError:
    """Return the error in a response of the console, or of a proxy before it."""
    retry_after = response.headers.get("Retry-After", "")
    retry_after_s = float(retry_after) if retry_after.isdigit() else None
    try:
        document = json.loads(response.read())
        problems = tuple(
            Problem(it["location"], it["message"], it["remedy"], it["code"])
            for it in document["errors"]
        )
        code, message, retryable = document["code"], document["detail"], document["retryable"]
    except (ValueError, LookupError, TypeError):
        code, message, problems = "http", f"HTTP {response.code} {response.reason}", ()
        retryable = response.code in _RETRYABLE_STATUSES
    return ApiError(
        response.code, code, message, problems, retryable=retryable, retry_after_s=retry_after_s
    )


def _events_of(response: HTTPResponse) -> Iterator[dict[str, Any]]:
    """Yield the events of a stream of server-sent events, each with its ``id``."""
    event_id = ""
    for line in response:
        name, _, value = line.decode().rstrip("\r\n").partition(": ")
        if name == "id":
            event_id = value
        elif name == "data":
            yield {"id": event_id, **json.loads(value)}
