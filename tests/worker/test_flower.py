import stat
from pathlib import Path

from tasks.settings import Settings
from worker.flower import flower_address, flower_credentials, password_file


def test_a_password_is_made_once_and_only_its_owner_can_read_it(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path / "home", flower_basic_auth=None)
    first = flower_credentials(settings)
    assert first == flower_credentials(settings)
    user, _, password = first.partition(":")
    assert user == "operator"
    assert len(password) >= 20
    assert stat.S_IMODE(password_file(settings).stat().st_mode) == 0o600


def test_configured_credentials_win_and_are_never_shown(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, flower_basic_auth="me:hidden")
    assert flower_credentials(settings) == "me:hidden"
    assert "hidden" not in repr(settings)


def test_it_is_on_the_loopback_address(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, flower_port=5999)
    assert flower_address(settings) == "http://127.0.0.1:5999"


def test_where_it_listens_everywhere_it_is_asked_on_the_loopback_address(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, flower_port=5999, flower_address="0.0.0.0")
    assert flower_address(settings) == "http://127.0.0.1:5999"
