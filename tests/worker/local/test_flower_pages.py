from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from flower.app import Flower
from flower.urls import handlers
from flower.urls import settings as flower_settings
from flower.views.monitor import Metrics
from flower.views.workers import WorkersView
from redis import Redis
from tornado.httputil import HTTPHeaders, HTTPServerRequest, RequestStartLine
from tornado.web import Application, ErrorHandler

from worker.local.flower_pages import (
    JobTaskView,
    QueueLengthsView,
    QueuesView,
    check_hosts,
    extend_flower,
    templates,
)


def request_for(host: str, path: str) -> HTTPServerRequest:
    connection: Any = SimpleNamespace(context=None)
    line = RequestStartLine("GET", path, "HTTP/1.1")
    headers = HTTPHeaders({"Host": host})
    return HTTPServerRequest(headers=headers, connection=connection, start_line=line)


def test_a_flower_without_a_place_for_a_link_is_unchanged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "navbar.html").write_text("<nav></nav>")
    monkeypatch.setitem(flower_settings, "template_path", str(tmp_path))
    assert templates("http://console.example")["navbar.html"] == "<nav></nav>"
    assert "no place for a link in navbar.html" in caplog.text


def test_a_flower_without_a_console_has_no_links() -> None:
    assert "Console" not in templates(None)["navbar.html"]
    assert "job_url" not in templates(None)["task.html"]


@pytest.mark.parametrize(
    ("path", "view"),
    [
        ("/broker", QueuesView),
        ("/api/queues/length", QueueLengthsView),
        ("/task/1", JobTaskView),
        ("/workers", WorkersView),
    ],
)
def test_flower_shows_our_views(path: str, view: type, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Flower, "find_handler", Flower.find_handler)
    for name in ("training_client", "training_console", "template_loader"):
        monkeypatch.setitem(flower_settings, name, None)
    unchanged = list(handlers)
    extend_flower(Redis(), None, set())
    found = Flower.find_handler(Application(handlers), request_for("localhost", path))
    handlers[:] = unchanged
    assert found.handler_class is view


@pytest.mark.parametrize(
    ("host", "handler"),
    [("localhost:5555", Metrics), ("flower:5555", Metrics), ("evil.example", ErrorHandler)],
)
def test_flower_answers_to_configured_host_names_only(
    host: str, handler: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Flower, "find_handler", Flower.find_handler)  # restores it afterwards
    check_hosts({"flower"})
    found = Flower.find_handler(Application(handlers), request_for(host, "/metrics"))
    assert found.handler_class is handler
