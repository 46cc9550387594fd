from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from flower.app import Flower
from flower.urls import handlers
from flower.urls import settings as flower_settings
from flower.views.monitor import Metrics
from tornado.httputil import HTTPHeaders, HTTPServerRequest, RequestStartLine
from tornado.web import Application, ErrorHandler

from worker.local.flower_pages import check_hosts, templates


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
    ("host", "handler"),
    [("localhost:5555", Metrics), ("flower:5555", Metrics), ("evil.example", ErrorHandler)],
)
def test_flower_answers_to_configured_host_names_only(
    host: str, handler: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Flower, "find_handler", Flower.find_handler)  # restores it afterwards
    check_hosts({"flower"})
    headers = HTTPHeaders({"Host": host})
    connection: Any = SimpleNamespace(context=None)
    line = RequestStartLine("GET", "/metrics", "HTTP/1.1")
    request = HTTPServerRequest(headers=headers, connection=connection, start_line=line)
    found = Flower.find_handler(Application(handlers), request)
    assert found.handler_class is handler
