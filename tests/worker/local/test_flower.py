import stat
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from flower.app import Flower
from flower.urls import handlers
from flower.urls import settings as flower_settings
from flower.views.monitor import Metrics
from pydantic import ValidationError
from tornado.httputil import HTTPHeaders, HTTPServerRequest, RequestStartLine
from tornado.web import Application, ErrorHandler

from tasks.settings.settings import Settings
from worker.local.flower import (
    add_link,
    check_hosts,
    flower_address,
    flower_credentials,
    password_file,
)


def test_a_password_is_generated_once_for_its_owner_only(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path / "home", flower_basic_auth=None)
    first = flower_credentials(settings)
    assert first == flower_credentials(settings)
    user, _, password = first.partition(":")
    assert user == "operator"
    assert len(password) >= 20
    assert stat.S_IMODE(password_file(settings).stat().st_mode) == 0o600


def test_configured_credentials_take_precedence(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, flower_basic_auth="me:hidden")
    assert flower_credentials(settings) == "me:hidden"
    assert "hidden" not in repr(settings)


def test_flower_is_on_the_loopback_address(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, flower_port=5999)
    assert flower_address(settings) == "http://127.0.0.1:5999"


def test_the_address_has_the_proxys_prefix(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, flower_port=5999, flower_prefix="ops/flower")
    assert flower_address(settings) == "http://127.0.0.1:5999/ops/flower/"


@pytest.mark.parametrize("prefix", ["/ops", "ops/", "ops//flower", "a b", "../ops", ""])
def test_an_invalid_prefix_is_refused(prefix: str) -> None:
    with pytest.raises(ValidationError, match="flower_prefix"):
        Settings(flower_prefix=prefix)


def test_an_invalid_console_address_is_refused() -> None:
    with pytest.raises(ValidationError, match="console_url"):
        Settings(console_url="javascript:alert(1)")


def test_a_flower_without_a_place_for_a_link_is_unchanged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "navbar.html").write_text("<nav></nav>")
    monkeypatch.setitem(flower_settings, "template_path", str(tmp_path))
    add_link("Console", "http://console.example")
    assert "template_loader" not in flower_settings
    assert "no place for a link" in caplog.text


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


def test_a_wildcard_address_is_shown_as_loopback(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, flower_port=5999, flower_address="0.0.0.0")
    assert flower_address(settings) == "http://127.0.0.1:5999"
