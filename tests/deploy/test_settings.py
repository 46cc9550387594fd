"""The manifests use settings and options that exist."""

import re
import subprocess
from pathlib import Path

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from tasks.settings.settings import Settings
from tests.deploy.manifests import DEPLOY, ROOT, Process, processes
from tests.docs.reference import all_commands
from worker.cli.app import cli

COMMANDS = {name for name, _ in all_commands(get_command(cli))}
STARTED = [process for process in processes() if process.command in COMMANDS]
NAMES = {f"TRAINING_{name.upper()}" for name in Settings.model_fields}


def test_every_kind_of_manifest_starts_processes() -> None:
    kinds = {process.where.split()[0].rpartition(".")[2] for process in STARTED}
    assert kinds == {"yaml", "k8s", "service"}


@pytest.mark.parametrize("process", STARTED, ids=str)
def test_settings_of_manifests_are_valid(process: Process, monkeypatch: pytest.MonkeyPatch) -> None:
    used = {name for name in {*process.env, *process.secrets} if name.startswith("TRAINING_")}
    assert used <= NAMES
    for name in process.env.keys() - {"TRAINING_SECRETS_DIR"}:
        monkeypatch.setenv(name, process.env[name])
    settings = Settings()
    assert (
        process.grace_s > settings.shutdown_timeout.total_seconds() or process.command != "worker"
    )
    assert process.env["TRAINING_SECRETS_DIR"] == process.secrets_dir


@pytest.mark.parametrize("process", STARTED, ids=str)
def test_options_of_manifests_exist(process: Process) -> None:
    result = CliRunner().invoke(cli, [process.command, "--help"], env={"COLUMNS": "200"})
    for word in process.argv[1:]:
        if word.startswith("--"):
            assert re.search(rf"{word}\b", result.output), word


def test_example_environment_has_known_settings() -> None:
    lines = (DEPLOY / "systemd" / "environment.example").read_text("utf-8").splitlines()
    named = {line.partition("=")[0] for line in lines if line and not line.startswith("#")}
    assert named
    assert named <= NAMES


def test_manifests_hold_no_secret() -> None:
    for process in processes():
        assert not {name for name in process.env if "URL" in name} - {"TRAINING_STORE_URL"}
    text = (DEPLOY / "k8s" / "secrets.example.yaml").read_text("utf-8")
    assert set(re.findall(r': ("[^"]*")', text)) == {'""'}


def test_secrets_stay_out_of_repository_and_images() -> None:
    assert "deploy/secrets/" in (ROOT / ".gitignore").read_text("utf-8").splitlines()
    rules = (ROOT / ".dockerignore").read_text("utf-8").splitlines()
    assert "*" in rules
    assert not any(rule.startswith("!deploy/secrets") for rule in rules)


def test_every_sentinel_of_a_backends_url_has_its_login(tmp_path: Path) -> None:
    address = "sentinel://a:26379;sentinel://b:26379/0"
    subprocess.run(["bash", str(DEPLOY / "secrets.sh"), str(tmp_path), address], check=True)
    url = (tmp_path / "backend" / "TRAINING_BROKER_URL").read_text("utf-8")
    password = (tmp_path / "backend" / "password").read_text("utf-8")
    login = f"sentinel://backend:{password}"
    assert url == f"{login}@a:26379;{login}@b:26379/0"
