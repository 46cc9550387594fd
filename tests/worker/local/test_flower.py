import stat
from pathlib import Path

import pytest
from pydantic import ValidationError

from tasks.settings.settings import Settings
from worker.local.flower import flower_address, flower_credentials, password_file


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


def test_a_wildcard_address_is_shown_as_loopback(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, flower_port=5999, flower_address="0.0.0.0")
    assert flower_address(settings) == "http://127.0.0.1:5999"
