"""What the manifests say to our processes is what these understand."""

import re

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from tasks.settings.settings import Settings
from tests.deploy.manifests import DEPLOY, ROOT, Process, processes
from tests.docs.reference import all_commands
from worker.cli.app import cli

COMMANDS = {name for name, _ in all_commands(get_command(cli))}
OURS = [process for process in processes() if process.command in COMMANDS]
NAMES = {f"TRAINING_{name.upper()}" for name in Settings.model_fields}


def test_there_are_processes_of_every_kind_of_manifest() -> None:
    kinds = {process.where.split()[0].rpartition(".")[2] for process in OURS}
    assert kinds == {"yaml", "k8s", "service"}


@pytest.mark.parametrize("process", OURS, ids=str)
def test_every_setting_exists_and_its_value_is_taken(
    process: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = {name for name in {*process.env, *process.secrets} if name.startswith("TRAINING_")}
    assert ours <= NAMES
    for name in process.env.keys() - {"TRAINING_SECRETS_DIR"}:
        monkeypatch.setenv(name, process.env[name])
    settings = Settings()
    assert (
        process.grace_s > settings.shutdown_timeout.total_seconds() or process.command != "worker"
    )
    assert process.env["TRAINING_SECRETS_DIR"] == process.secrets_dir


@pytest.mark.parametrize("process", OURS, ids=str)
def test_every_option_exists(process: Process) -> None:
    shown = CliRunner().invoke(cli, [process.command, "--help"], env={"COLUMNS": "200"})
    for word in process.argv[1:]:
        if word.startswith("--"):
            assert re.search(rf"{word}\b", shown.output), word


def test_the_example_of_an_environment_file_is_settings() -> None:
    lines = (DEPLOY / "systemd" / "environment.example").read_text("utf-8").splitlines()
    named = {line.partition("=")[0] for line in lines if line and not line.startswith("#")}
    assert named
    assert named <= NAMES


def test_no_secret_is_in_a_manifest() -> None:
    for process in processes():
        assert not {name for name in process.env if "URL" in name} - {"TRAINING_STORE_URL"}
    text = (DEPLOY / "k8s" / "secrets.example.yaml").read_text("utf-8")
    assert set(re.findall(r': ("[^"]*")', text)) == {'""'}


def test_secrets_stay_out_of_the_repository_and_of_images() -> None:
    assert "deploy/secrets/" in (ROOT / ".gitignore").read_text("utf-8").splitlines()
    rules = (ROOT / ".dockerignore").read_text("utf-8").splitlines()
    assert "*" in rules
    assert not any(rule.startswith("!deploy/secrets") for rule in rules)
