"""The core, without any extra, sends jobs and has the command line."""

import json
import os
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement

from tasks.extras import EXTRAS, is_installed
from tests.tasks.jobs.test_flux_lora import GOOD

ROOT = Path(__file__).parents[2]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
# Besides the modules of the extras: what these bring along.
ALSO_BLOCKED = ("diffusers", "numpy", "peft", "safetensors", "starlette", "tornado", "transformers")
TRACKERS = ("mlflow", "wandb")
BLOCK = f"""
import sys
for name in {[*EXTRAS, *ALSO_BLOCKED]}:
    sys.modules[name] = None
"""


def names_of(requirements: list[str]) -> set[str]:
    """Return the distributions, in normal form."""
    return {normalized(Requirement(entry).name) for entry in requirements}


def normalized(name: str) -> str:
    return name.lower().replace("_", "-").replace(".", "-")


def run_core(*arguments: str, **env: str) -> "subprocess.CompletedProcess[str]":
    """Run a command in a process in which no extra is installed."""
    program = f"{BLOCK}\nfrom worker.__main__ import main\nmain()"
    clean = {k: v for k, v in os.environ.items() if not k.startswith("TRAINING_")}
    return subprocess.run(
        [sys.executable, "-P", "-c", program, *arguments],
        env={**clean, "COLUMNS": "300", **env},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("module", EXTRAS)
def test_an_extra_installs_its_module(module: str) -> None:
    if module in TRACKERS and not is_installed(module):
        pytest.skip("trackers are no part of the development environment")
    extra = PROJECT["optional-dependencies"][EXTRAS[module]]
    distributions = packages_distributions()[module.partition(".")[0]]
    assert {normalized(name) for name in distributions} & names_of(extra)


def test_the_tested_versions_meet_the_requirements() -> None:
    lines = (ROOT / "deploy" / "constraints.txt").read_text("utf-8").splitlines()
    pins = dict(line.split("==") for line in lines if not line.startswith("#"))
    versions = {normalized(name): version for name, version in pins.items()}
    for requirements in (PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()):
        for requirement in map(Requirement, requirements):
            if requirement.name != PROJECT["name"]:
                assert versions[normalized(requirement.name)] in requirement.specifier, requirement


def test_an_extra_is_not_part_of_the_core() -> None:
    core = names_of(PROJECT["dependencies"])
    for extra, requirements in PROJECT["optional-dependencies"].items():
        assert not core & names_of(requirements), extra


def test_the_core_submits_and_lists_jobs(broker_url: str, tmp_path: Path) -> None:
    settings = {"TRAINING_HOME": str(tmp_path), "TRAINING_BROKER_URL": broker_url}
    job = tmp_path / "job.yaml"
    job.write_text(yaml.safe_dump(GOOD), "utf-8")
    sent = run_core("submit", str(job), "--json", **settings)
    assert sent.returncode == 0, sent.stderr
    job_id = json.loads(sent.stdout)["job_id"]
    for command in (
        ("list",),
        ("status", job_id),
        ("cancel", job_id),
        ("dead-letter", "list"),
        ("tenants",),
    ):
        ran = run_core(*command, "--json", **settings)
        assert ran.returncode == 0, (command, ran.stderr)
    watched = run_core("watch", job_id, **settings)
    assert watched.returncode == 10, watched.stderr  # it was cancelled


@pytest.mark.parametrize(
    "command", [("--help",), ("presets",), ("options",), ("contract", "folder"), ("keys", "list")]
)
def test_the_core_has_the_command_line(command: tuple[str, ...], tmp_path: Path) -> None:
    arguments = [str(tmp_path / word) if word == "folder" else word for word in command]
    ran = run_core(*arguments, TRAINING_HOME=str(tmp_path))
    assert ran.returncode == 0, ran.stderr


@pytest.mark.parametrize(
    ("command", "extra"),
    [
        (("worker",), "worker"),
        (("doctor",), "worker"),
        (("submit", "job.yaml", "--dry-run"), "worker"),
        (("flower",), "flower"),
        (("metrics",), "metrics"),
        (("console",), "console"),
        (("simulate", "fleet.csv"), "simulate"),
        (("demo",), "worker"),
    ],
)
def test_a_missing_extra_is_named(command: tuple[str, ...], extra: str, tmp_path: Path) -> None:
    job = tmp_path / "job.yaml"
    job.write_text(yaml.safe_dump(GOOD), "utf-8")
    arguments = [str(job) if word == "job.yaml" else word for word in command]
    ran = run_core(
        *arguments, TRAINING_HOME=str(tmp_path), TRAINING_BROKER_URL="redis://localhost:1"
    )
    assert ran.returncode == 16, ran.stdout + ran.stderr
    assert f"pip install 'training-worker[{extra}]'" in ran.stderr
