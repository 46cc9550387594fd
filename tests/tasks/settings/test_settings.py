import re
from datetime import timedelta
from pathlib import Path

import pytest
from pydantic import ValidationError

from tasks.errors import EXIT_CODES, SettingsError
from tasks.settings.settings import (
    DEPLOYMENT_VARIABLES,
    GROUPS,
    Settings,
    load_settings,
    variable_of,
)


@pytest.fixture(autouse=True)
def without_inherited_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(f"TRAINING_{name.upper()}", raising=False)


@pytest.mark.parametrize(
    ("text", "duration"),
    [
        ("90", timedelta(seconds=90)),
        ("0.5", timedelta(seconds=0.5)),
        ("P30D", timedelta(days=30)),
        ("PT1H30M", timedelta(minutes=90)),
    ],
)
def test_a_duration_is_seconds_or_iso_8601(
    text: str, duration: timedelta, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRAINING_JOB_TTL", text)
    assert Settings().job_ttl == duration


@pytest.mark.parametrize("name", ["JOB_TTL", "SHUTDOWN_TIMEOUT", "VISIBILITY_TIMEOUT"])
@pytest.mark.parametrize("text", ["0", "-1", "P-1D", "soon", "", "nan", "inf", "1e300"])
def test_an_invalid_duration_is_refused_by_its_name(
    name: str, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"TRAINING_{name}", text)
    with pytest.raises(ValidationError, match=name.lower()):
        Settings()


@pytest.mark.parametrize(
    ("name", "text"),
    [("FLOWER_PORT", "70000"), ("TRAINER_RESTARTS", "-1"), ("LOG_FORMAT", "xml")],
)
def test_a_value_out_of_range_is_refused(
    name: str, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"TRAINING_{name}", text)
    with pytest.raises(ValidationError, match=name.lower()):
        Settings()


def test_secrets_are_redacted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRAINING_BROKER_URL", "redis://user:hunter2@broker/0")
    monkeypatch.setenv("TRAINING_FLOWER_BASIC_AUTH", "operator:hunter2")
    assert "hunter2" not in repr(Settings())


def test_store_and_scratch_default_to_the_home_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRAINING_HOME", str(tmp_path))
    assert Settings().resolved_store_url == (tmp_path / "store").as_uri()
    assert Settings().resolved_scratch_dir == tmp_path / "scratch"
    monkeypatch.setenv("TRAINING_STORE_URL", "s3://bucket/prefix")
    monkeypatch.setenv("TRAINING_SCRATCH_DIR", "~/fast")
    assert Settings().resolved_store_url == "s3://bucket/prefix"
    assert Settings().resolved_scratch_dir == Path.home() / "fast"


def test_secrets_come_from_files_unless_in_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "TRAINING_BROKER_URL").write_text("redis://:hidden@broker/0\n")
    (tmp_path / "TRAINING_MAX_RETRIES").write_text("3")
    monkeypatch.setenv("TRAINING_SECRETS_DIR", str(tmp_path))
    monkeypatch.setenv("TRAINING_MAX_RETRIES", "4")
    settings = Settings()
    assert settings.broker_url is not None
    assert settings.broker_url.get_secret_value() == "redis://:hidden@broker/0"
    assert settings.max_retries == 4
    assert "hidden" not in repr(settings)


def test_a_broker_url_that_cannot_work_names_its_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRAINING_BROKER_URL", "redis://:hun/ter2@broker/0")
    with pytest.raises(SettingsError) as caught:
        load_settings()
    [problem] = caught.value.problems
    assert problem.location == "TRAINING_BROKER_URL"
    assert "quote it, such as %40" in problem.message
    assert "ter2" not in str(caught.value)
    assert EXIT_CODES[caught.value.code] == 2


def test_a_missing_secrets_folder_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TRAINING_SECRETS_DIR", "/nowhere/at/all")
    with pytest.raises(ValidationError, match="/nowhere/at/all is not a folder"):
        Settings()


def test_an_unknown_setting_is_refused_with_a_suggestion(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "TRAINING_BROKER_ULR").write_text("redis://broker/0")
    monkeypatch.setenv("TRAINING_SECRETS_DIR", str(tmp_path))
    monkeypatch.setenv("TRAINING_MAX_RETRYS", "4")
    monkeypatch.setenv("TRAINING_Q", "4")
    monkeypatch.setenv("TRAINING_FLOWER_PORT", "70000")
    with pytest.raises(SettingsError) as caught:
        load_settings()
    assert EXIT_CODES[caught.value.code] == 2
    assert [problem.location for problem in caught.value.problems] == [
        "TRAINING_FLOWER_PORT",
        "TRAINING_BROKER_ULR",
        "TRAINING_MAX_RETRYS",
        "TRAINING_Q",
    ]
    _, secret, typo, unknown = (problem.message for problem in caught.value.problems)
    assert secret == "no such setting; did you mean TRAINING_BROKER_URL?"
    assert typo == "no such setting; did you mean TRAINING_MAX_RETRIES?"
    assert unknown == "no such setting"


def test_service_links_of_kubernetes_are_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    links = {
        "TRAINING_CONSOLE_PORT": "tcp://10.0.0.7:8080",
        "TRAINING_CONSOLE_PORT_8080_TCP": "tcp://10.0.0.7:8080",
        "TRAINING_CONSOLE_PORT_8080_TCP_ADDR": "10.0.0.7",
        "TRAINING_CONSOLE_SERVICE_HOST": "10.0.0.7",
        "TRAINING_CONSOLE_SERVICE_PORT_HTTP": "8080",
    }
    for name, value in links.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError) as caught:
        load_settings()
    assert {problem.location for problem in caught.value.problems} == set(links)
    for problem in caught.value.problems:
        assert problem.message.endswith("set enableServiceLinks: false in the pod")


def test_variables_of_the_compose_file_are_no_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    compose = (Path(__file__).parents[3] / "deploy" / "compose.yaml").read_text("utf-8")
    used = set(re.findall(r"\$\{(TRAINING_[A-Z0-9_]+)", compose))
    assert used - {variable_of(name) for name in Settings.model_fields} == DEPLOYMENT_VARIABLES
    for name in DEPLOYMENT_VARIABLES:
        monkeypatch.setenv(name, "0")
    load_settings()


@pytest.mark.parametrize("text", ["debug", "WARNING"])
def test_log_level_is_read_in_any_case(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRAINING_LOG_LEVEL", text)
    assert load_settings().log_level == text.lower()


def test_every_setting_is_in_one_documented_group() -> None:
    fields = [name for group in GROUPS for name in group.__annotations__]
    assert sorted(fields) == sorted({*fields, *Settings.model_fields})
