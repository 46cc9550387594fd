"""A server that speaks what huggingface_hub asks the Hub for when it publishes a model."""

import base64
import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
import yaml
from huggingface_hub import constants
from huggingface_hub.utils import _http

TOKEN = "hf_secretOfTheTenant"
Answer = tuple[int, dict[str, str], bytes]


@dataclass
class Repo:
    """A repository: its files at the head, and its commits."""

    private: bool
    files: dict[str, bytes] = field(default_factory=lambda: {".gitattributes": b""})
    commits: list[str] = field(default_factory=lambda: ["first"])
    seen: int = 0

    @property
    def head(self) -> str:
        return hashlib.sha1("\n".join(self.commits).encode()).hexdigest()


@dataclass
class HubServer:
    """A Hub with the user ``me``, who is in the organization ``lab``."""

    url: str = ""
    repos: dict[str, Repo] = field(default_factory=dict)
    blobs: dict[str, bytes] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    tokens: set[str] = field(default_factory=set)
    role: str = "write"
    fails: dict[str, int] = field(default_factory=dict)
    """A part of a path and the status that it is answered with."""
    before_commit: Callable[[], object] = lambda: None

    def answer(self, method: str, path: str, headers: dict[str, str], body: bytes) -> Answer:
        self.asked.append(f"{method} {path}")
        if path.startswith("/lfs/"):
            self.blobs[path.rpartition("/")[2]] = body
            return 200, {}, b""
        token = headers.get("authorization", "").removeprefix("Bearer ")
        self.tokens.add(token)
        for part, status in self.fails.items():
            if part in path:
                return status, {}, b"{}"
        if token != TOKEN:
            return 401, {"X-Error-Message": "Invalid credentials in Authorization header"}, b"{}"
        match path.removeprefix("/api/").split("/"):
            case ["whoami-v2"]:
                auth = {"accessToken": {"role": self.role}}
                return _json({"name": "me", "orgs": [{"name": "lab"}], "auth": auth})
            case ["validate-yaml"]:
                yaml.safe_load(json.loads(body)["content"].split("---\n")[1])
                return _json({"warnings": [], "errors": []})
            case ["repos", "create"]:
                return self._create(json.loads(body))
            case ["models", owner, name, *rest] if f"{owner}/{name}" in self.repos:
                return self._of_repo(f"{owner}/{name}", rest, body)
            case ["", owner, name, "info", "lfs", *_] if f"{owner}/{name[:-4]}" in self.repos:
                return self._batch(f"{owner}/{name[:-4]}", json.loads(body))
        return 404, {"X-Error-Code": "RepoNotFound"}, b"{}"

    def _create(self, asked: dict[str, Any]) -> Answer:
        name = f"{asked['organization']}/{asked['name']}"
        if name in self.repos:
            return 409, {}, b"{}"
        self.repos[name] = Repo(asked["visibility"] == "private")
        return _json({"url": f"{self.url}/{name}"})

    def _of_repo(self, name: str, rest: list[str], body: bytes) -> Answer:
        repo = self.repos[name]
        match rest:
            case [] | ["revision", "main"]:
                return _json({"id": name, "sha": repo.head, "private": repo.private})
            case ["auth-check", *_] | ["verify"]:
                return _json({})
            case ["preupload", _]:
                asked = json.loads(body)["files"]
                return _json({"files": [self._mode(repo, it["path"]) for it in asked]})
            case ["commit", _]:
                return self._commit(name, body)
        return 404, {"X-Error-Code": "EntryNotFound"}, b"{}"

    def _mode(self, repo: Repo, path: str) -> dict[str, Any]:
        is_large = path.endswith((".safetensors", ".png"))
        data = repo.files.get(path)
        oid = None
        if data is not None:
            git = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
            oid = hashlib.sha256(data).hexdigest() if is_large else git
        mode = "lfs" if is_large else "regular"
        return {"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid}

    def _batch(self, repo: str, asked: dict[str, Any]) -> Answer:
        objects = []
        for wanted in asked["objects"]:
            href = f"{self.url}/lfs/{wanted['oid']}"
            is_known = wanted["oid"] in self.blobs
            verify = {"href": f"{self.url}/api/models/{repo}/verify"}
            upload = {"upload": {"href": href}, "verify": verify}
            actions = {} if is_known else {"actions": upload}
            objects.append({**wanted, **actions})
        return _json({"transfer": "basic", "objects": objects})

    def _commit(self, name: str, body: bytes) -> Answer:
        self.before_commit()
        repo = self.repos[name]
        header, *operations = [json.loads(line) for line in body.splitlines()]
        if header["value"].get("parentCommit") != repo.head:
            return 412, {}, b"{}"
        for operation in operations:
            value = operation["value"]
            is_large = operation["key"] == "lfsFile"
            data = self.blobs[value["oid"]] if is_large else base64.b64decode(value["content"])
            repo.files[value["path"]] = data
        repo.commits.append(header["value"]["summary"])
        url = f"{self.url}/{name}/commit/{repo.head}"
        return _json({"commitUrl": url, "commitOid": repo.head})


def _json(document: object) -> Answer:
    return 200, {}, json.dumps(document).encode()


@contextmanager
def running_hub_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """Serve a Hub to the library in this process."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    with serving_hub() as hub:
        yield hub
        for started in threading.enumerate():
            if started.name == "download":
                started.join()
        _http.close_session()


@contextmanager
def serving_hub() -> Iterator[HubServer]:
    hub = HubServer()

    class Handler(BaseHTTPRequestHandler):
        def _reply(self) -> None:
            size = int(self.headers.get("Content-Length") or 0)
            body = self.rfile.read(size) if size else self._chunks()
            headers = {name.lower(): value for name, value in self.headers.items()}
            path = unquote(urlsplit(self.path).path)
            status, extra, answer = hub.answer(self.command, path, headers, body)
            self.send_response(status)
            for name, value in {"Content-Type": "application/json", **extra}.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def _chunks(self) -> bytes:
            if self.headers.get("Transfer-Encoding") != "chunked":
                return b""
            data = b""
            while size := int(self.rfile.readline(), 16):
                data += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return data

        do_GET = do_POST = do_PUT = _reply  # noqa: N815

        def log_message(self, format: str, *args: Any) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
