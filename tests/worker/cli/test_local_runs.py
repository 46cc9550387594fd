import re
from pathlib import Path

import pytest
from pydantic import SecretStr
from redis import Redis

from tasks.access.api_keys import ApiKeys, digest_of, ensure_console_key
from tasks.access.login_links import LoginLinks
from tasks.settings.settings import Settings
from worker.cli import local_runs
from worker.cli.reports.output import stdout
from worker.gpu.inventory import declared_gpus
from worker.local.local_fleet import Fleet
from worker.local.log_files import LogFiles


@pytest.fixture
def settings(tmp_path: Path, broker_url: str) -> Settings:
    settings = Settings(home=tmp_path, broker_url=SecretStr(broker_url), flower_port=0)
    ensure_console_key(ApiKeys(settings.api_keys_file), settings.console_key_file)
    return settings


def introduction(settings: Settings, url: str) -> str:
    logs = LogFiles(settings.logs_dir, 0)
    fleet = Fleet(declared_gpus("40gb"), url, None, [], {}, 1, logs)
    return local_runs._introduction(settings, fleet)


def test_up_prints_how_to_go_on(
    settings: Settings, broker_url: str, monkeypatch: pytest.MonkeyPatch, redis_client: Redis
) -> None:
    monkeypatch.setattr(stdout.file, "isatty", lambda: True)
    text = introduction(settings, broker_url)
    lines = dict(line.split(": ", 1) for line in text.splitlines())
    assert lines["broker"].startswith("redis")
    assert "emulated GPU computes on the CPU" in lines["note"]
    assert lines["logs"] == str(settings.home_dir / "logs")
    assert str(settings.console_key_file) in lines["console"]
    key = settings.console_key_file.read_text("utf-8").strip()
    assert key not in text
    link = re.match(r"http://127\.0\.0\.1:8080/login\?once=(\S+) \(works once", lines["log in"])
    assert link is not None
    assert LoginLinks(redis_client).redeem(link[1]) == digest_of(key)


def test_up_prints_no_link_into_a_log(
    settings: Settings, broker_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stdout, "_force_terminal", True)  # FORCE_COLOR makes no log a terminal
    assert "once=" not in introduction(settings, broker_url)


def test_up_prints_no_password(settings: Settings) -> None:
    text = introduction(settings, "rediss://fleet:s3cret@broker.example:6390/0")
    assert "broker: rediss://fleet:PASSWORD@broker.example:6390/0\n" in text
    assert "s3cret" not in text
