"""A stand-in for the Hub, which serves one dataset."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

from huggingface_hub import HfApi

NAME = "owner/images"
CONVERTED = "refs/convert/parquet"


@dataclass
class Hub:
    """A stand-in for the Hub with one dataset, and the paths that it was asked for."""

    api: HfApi
    revisions: dict[str, dict[str, bytes]] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    page: bytes | None = None
    """Stands in for the answers to all paths with ``page_for`` in them."""
    page_for: str = ""

    def holds(
        self, *, main: dict[str, bytes] | None = None, converted: dict[str, bytes] | None = None
    ) -> None:
        """Set the files that are there."""
        self.revisions = {"main": main or {}}
        if converted is not None:
            self.revisions[CONVERTED] = converted

    def downloads(self) -> list[str]:
        return [path for path in self.asked if path.startswith("GET /datasets/")]

    def answer(self, path: str) -> tuple[int, dict[str, str], bytes]:
        if self.page is not None and self.page_for in path:
            return 200, {}, self.page
        for name, code in {"owner/gated": "GatedRepo", "owner/missing": "RepoNotFound"}.items():
            if name in path:
                return (403 if code == "GatedRepo" else 404), {"X-Error-Code": code}, b"{}"
        commits = {sha_of(revision): revision for revision in self.revisions}
        match unquote(path).removeprefix("/api").removeprefix(f"/datasets/{NAME}").split("/", 3):
            case ["", "tree", sha]:
                return 200, {}, json.dumps(tree(self.revisions[commits[sha]])).encode()
            case ["", "resolve", sha, file] if file in self.revisions[commits[sha]]:
                body = self.revisions[commits[sha]][file]
                etag = hashlib.sha256(body).hexdigest()
                return 200, {"ETag": f'"{etag}"', "X-Repo-Commit": sha}, body
            case [""]:
                revision = "main"
            case ["", "revision", *rest]:
                revision = "/".join(rest)
            case _:
                return 404, {"X-Error-Code": "EntryNotFound"}, b"{}"
        if revision not in self.revisions:
            return 404, {"X-Error-Code": "RevisionNotFound"}, b"{}"
        info = {"id": NAME, "sha": sha_of(revision), "siblings": []}
        return 200, {}, json.dumps(info).encode()


def sha_of(revision: str) -> str:
    return hashlib.sha1(revision.encode()).hexdigest()


def tree(files: dict[str, bytes]) -> list[dict[str, Any]]:
    folders = {path.rpartition("/")[0] for path in files} - {""}
    return [
        *({"type": "directory", "path": path, "oid": "0"} for path in folders),
        *(
            {"type": "file", "path": path, "size": len(data), "oid": "1"}
            for path, data in reversed(files.items())
        ),
    ]


@contextmanager
def running_hub() -> Iterator[Hub]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            stand_in.asked.append(f"{self.command} {self.path}")
            status, headers, body = stand_in.answer(urlsplit(self.path).path)
            self.send_response(status)
            for name, value in {"Content-Type": "application/json", **headers}.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def do_HEAD(self) -> None:
            self.do_GET()

        def log_message(self, format: str, *args: Any) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    stand_in = Hub(HfApi(endpoint=f"http://127.0.0.1:{server.server_port}"))
    others = set(threading.enumerate())
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield stand_in
    finally:
        # A call that its job has left: when its server is gone, the Hub's library closes the
        # connections of all calls.
        for started in set(threading.enumerate()) - others:
            if started.name == "download":
                started.join()
        server.shutdown()
        thread.join()
        server.server_close()
