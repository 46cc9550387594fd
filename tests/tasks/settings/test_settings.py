from datetime import timedelta
from pathlib import Path

import pytest
from pydantic import ValidationError

from tasks.settings.settings import Settings


@pytest.fixture(autouse=True)
def without_the_callers_settings(monkeypatch: pytest.MonkeyPatch) -> None:
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
def test_a_duration_is_bare_seconds_or_iso_8601(
    text: str, duration: timedelta, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRAINING_JOB_TTL", text)
    assert Settings().job_ttl == duration


@pytest.mark.parametrize("name", ["JOB_TTL", "SHUTDOWN_TIMEOUT", "VISIBILITY_TIMEOUT"])
@pytest.mark.parametrize("text", ["0", "-1", "P-1D", "soon", "", "nan", "inf", "1e300"])
def test_a_duration_that_is_none_is_refused_by_its_name(
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


def test_secrets_are_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRAINING_BROKER_URL", "redis://user:hunter2@broker/0")
    monkeypatch.setenv("TRAINING_FLOWER_BASIC_AUTH", "operator:hunter2")
    assert "hunter2" not in repr(Settings())


def test_store_and_scratch_lie_in_the_home_folder_unless_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRAINING_HOME", str(tmp_path))
    assert Settings().resolved_store_url == (tmp_path / "store").as_uri()
    assert Settings().resolved_scratch_dir == tmp_path / "scratch"
    monkeypatch.setenv("TRAINING_STORE_URL", "s3://bucket/prefix")
    monkeypatch.setenv("TRAINING_SCRATCH_DIR", "~/fast")
    assert Settings().resolved_store_url == "s3://bucket/prefix"
    assert Settings().resolved_scratch_dir == Path.home() / "fast"


def test_a_secret_comes_from_a_file_of_its_name_and_the_environment_goes_before(
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


def test_a_folder_of_secrets_that_is_not_there_is_refused_by_its_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TRAINING_SECRETS_DIR", "/nowhere/at/all")
    with pytest.raises(ValidationError, match="there is no folder /nowhere/at/all"):
        Settings()
