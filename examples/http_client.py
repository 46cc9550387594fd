"""Train over HTTP: upload images, submit a job, follow its events, download the result.

    KEY=twk_... python http_client.py http://127.0.0.1:8080 job.json images results

``job.json`` is a job without a dataset: the script uploads the folder ``images`` and names it. The
script needs the standard library only.
"""

import hashlib
import io
import json
import os
import sys
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator, Mapping
from http.client import HTTPResponse
from pathlib import Path
from typing import Any
from urllib.parse import quote

TUS = {"Tus-Resumable": "1.0.0"}
CHUNK_BYTES = 8 << 20


class Api:
    """Client of the console's HTTP API.

    Args:
        url: Address of the console.
        key: An API key, ``twk_...``.
    """

    def __init__(self, url: str, key: str) -> None:
        self._url = f"{url.rstrip('/')}/v1"
        self._key = key

    def request(
        self,
        method: str,
        path: str,
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
    ) -> HTTPResponse:
        """Send a request; print the problems and exit if it is refused."""
        headers = {"Authorization": f"Bearer {self._key}", **(headers or {})}
        request = urllib.request.Request(self._url + path, body, headers, method=method)
        try:
            response: HTTPResponse = urllib.request.urlopen(request, timeout=120)
        except urllib.error.HTTPError as error:
            sys.exit(f"{method} {path}: {error.code} {error.read().decode()}")
        return response

    def json(self, method: str, path: str, document: Any = None) -> Any:
        """Send and receive JSON."""
        body = None if document is None else json.dumps(document).encode()
        with self.request(method, path, {"Content-Type": "application/json"}, body) as response:
            return json.load(response)


def zipped(folder: Path) -> bytes:
    """Return a zip archive of a folder's files."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for path in sorted(folder.iterdir()):
            archive.write(path, path.name)
    return buffer.getvalue()


def upload(api: Api, data: bytes) -> str:
    """Upload an archive in chunks by the tus protocol, and return the upload's id."""
    with api.request("POST", "/uploads", {**TUS, "Upload-Length": str(len(data))}) as response:
        upload_id = response.headers["Location"].rpartition("/")[2]
    # An interrupted upload resumes at the offset that HEAD returns.
    with api.request("HEAD", f"/uploads/{upload_id}", TUS) as response:
        offset = int(response.headers["Upload-Offset"])
    while offset < len(data):
        headers = {
            **TUS,
            "Upload-Offset": str(offset),
            "Content-Type": "application/offset+octet-stream",
        }
        chunk = data[offset : offset + CHUNK_BYTES]
        with api.request("PATCH", f"/uploads/{upload_id}", headers, chunk) as response:
            offset = int(response.headers["Upload-Offset"])
    return upload_id


def events(api: Api, job_id: str) -> Iterator[dict[str, Any]]:
    """Yield a job's events until it ends, reconnecting where the stream was interrupted."""
    last_id = "0"
    while True:
        with api.request("GET", f"/jobs/{job_id}/events?after={last_id}") as response:
            if response.status == 204:
                return
            for line in response:
                name, _, value = line.decode().strip().partition(": ")
                if name == "id":
                    last_id = value
                elif name == "data":
                    event = json.loads(value)
                    yield event
                    if event["kind"] == "ended":
                        return


def download(api: Api, job_id: str, folder: Path) -> None:
    """Download the published files, and compare their digests with the manifest."""
    folder.mkdir(parents=True, exist_ok=True)
    for file in api.json("GET", f"/jobs/{job_id}/files")["files"]:
        path = folder / file["name"]
        path.parent.mkdir(parents=True, exist_ok=True)
        with api.request("GET", f"/jobs/{job_id}/files/{quote(file['name'])}") as response:
            path.write_bytes(response.read())
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        if digest != file["sha256"]:
            sys.exit(f"{path}: SHA-256 {digest} differs from the manifest")
        print(f"downloaded: {path}")


def main() -> int:
    """Run a job, and return 1 if it fails."""
    url, job_path, images, results = sys.argv[1:]
    api = Api(url, os.environ["KEY"])
    job = json.loads(Path(job_path).read_text("utf-8"))
    archive = f"upload:{upload(api, zipped(Path(images)))}"
    loader = job["training"].setdefault("data_loader", {})
    loader["dataset"] = {"type": "ARCHIVE", "archive": archive}

    preview = api.json("POST", "/jobs:preview", job)
    if preview["error"]:
        print(preview["error"]["message"])
        return 1
    job_id = api.json("POST", "/jobs", job)["id"]
    print(f"job {job_id}")
    status = ""
    for event in events(api, job_id):
        if event["kind"] == "progress":
            print(f"{event['stage']}: {event['done']} of {event['total']} {event['unit']}")
        elif event["kind"] == "ended":
            status = event["status"]
    print(status)
    if status != "succeeded":
        return 1
    download(api, job_id, Path(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
