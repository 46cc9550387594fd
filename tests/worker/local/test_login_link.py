import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import SecretStr
from redis import Redis

from tasks.access.api_keys import ApiKeys, digest_of, ensure_console_key
from tasks.access.login_links import LoginLinks
from tasks.errors import ApiKeysError
from tasks.settings.settings import Settings
from tests.integration.fleets import free_port
from worker.local.login_link import new_login_link


@pytest.fixture
def settings(tmp_path: Path, broker_url: str) -> Settings:
    return Settings(home=tmp_path, broker_url=SecretStr(broker_url))


def test_each_link_is_new(settings: Settings, broker_url: str, redis_client: Redis) -> None:
    ensure_console_key(ApiKeys(settings.api_keys_file), settings.console_key_file)
    links = {new_login_link(settings, broker_url) for _ in range(2)}
    tokens = [link.partition("?once=")[2].split()[0] for link in links]
    digest = digest_of(settings.console_key_file.read_text("utf-8").strip())
    assert [LoginLinks(redis_client).redeem(token) for token in tokens] == [digest, digest]


def test_a_link_needs_a_valid_key(settings: Settings, broker_url: str) -> None:
    with pytest.raises(ApiKeysError, match="console-key cannot be read: No such file"):
        new_login_link(settings, broker_url)
    api_keys = ApiKeys(settings.api_keys_file)
    ensure_console_key(api_keys, settings.console_key_file)
    api_keys.revoke("console")
    with pytest.raises(ApiKeysError, match="has no valid key; restart"):
        new_login_link(settings, broker_url)


def test_no_link_is_made_for_a_console_that_does_not_run(tmp_path: Path, broker_url: str) -> None:
    env = {"TRAINING_HOME": str(tmp_path), "TRAINING_BROKER_URL": broker_url}
    env["TRAINING_CONSOLE_PORT"] = port = str(free_port())
    command = [sys.executable, "-P", "-m", "worker", "login-link"]
    shown = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)
    assert shown.returncode == 18
    assert f"no console answers on 127.0.0.1:{port}" in shown.stderr
