import json
import os
import re
import shlex
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import redis
import yaml
from typer.main import get_command
from typer.testing import CliRunner

from routing.policy import TrainingType
from tasks.jobs.presets import preset
from tasks.settings.settings import Settings
from tests.docs.reference import ROOT, all_commands
from tests.tasks.jobs.test_flux_lora import with_values
from tests.worker.cli.conftest import Invoke
from worker.cli.app import cli
from worker.cli.help import PURPOSES

COMMANDS = [name for name, _ in all_commands(get_command(cli))]


def run(
    *arguments: str, home: Path, code: int = 0, **settings: str
) -> subprocess.CompletedProcess[str]:
    env = {k: v for k, v in os.environ.items() if not k.startswith("TRAINING_")}
    done = subprocess.run(
        [sys.executable, "-P", "-m", "worker", *arguments],
        env={**env, "TRAINING_HOME": str(home), **settings},
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert done.returncode == code, done
    return done


@pytest.fixture
def job_file(tmp_path: Path) -> Path:
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump(with_values(gradient_checkpointing=True)), "utf-8")
    return path


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str) -> None:
    shown = CliRunner().invoke(cli, [*command.split(), "--help"], env={"COLUMNS": "200"})
    assert shown.exit_code == 0


def test_help_lists_all_commands_by_purpose_in_whole_sentences(invoke: Invoke) -> None:
    shown = invoke("--help", COLUMNS="80")
    headings = [line[:-1] for line in shown.splitlines() if re.fullmatch(r"\w[\w ]*:", line)]
    assert headings == ["Options", *PURPOSES, "Examples"]
    for group in ("", "cache", "dead-letter", "keys", "tenants", "config", "webhooks secret"):
        shown = invoke(*group.split(), "-h", COLUMNS="80")
        assert "..." not in shown.replace("[ARGS]...", "")
        assert max(map(len, shown.splitlines())) <= 80


@pytest.mark.parametrize(("name", "command"), list(all_commands(get_command(cli))))
def test_every_command_has_examples_that_parse_and_a_page(name: str, command: Any) -> None:
    *_, docs = (command.epilog or "").splitlines()
    assert (ROOT / docs.removeprefix("Docs: ")).is_file()
    examples = [line for line in command.epilog.splitlines() if line.startswith("  ")]
    assert examples
    for example in examples:
        program, *words = shlex.split(example.partition(" > ")[0])
        assert program == "training-worker"
        level = [word for word in words if word in ("-v", "-q")]
        words = [word for word in words if word not in level]
        assert words[: len(name.split())] == name.split()
        command.make_context(name, [*level, *words[len(name.split()) :]])


def test_help_names_arguments_and_values_plainly(invoke: Invoke) -> None:
    for command in COMMANDS:
        shown = invoke(*command.split(), "-h", COLUMNS="200")
        assert not re.search(r"[{}]|<\w+", shown), command


@pytest.mark.parametrize("arguments", [["-v", "presets", "x"], ["presets", "x", "--verbose"]])
def test_verbose_logs_the_traceback_of_an_error(tmp_path: Path, arguments: list[str]) -> None:
    shown = run(*arguments, home=tmp_path, code=2).stderr
    assert "UnknownPresetError" in shown
    assert "Traceback" not in run("presets", "x", home=tmp_path, code=2).stderr


@pytest.mark.parametrize("command", ["engines", "-v engines", "engines -q", "-q config show"])
def test_levels_stand_before_and_after_commands_and_groups(invoke: Invoke, command: str) -> None:
    assert json.loads(invoke(*command.split(), "--json").splitlines()[-1])


def test_verbose_and_quiet_exclude_each_other(invoke: Invoke) -> None:
    assert "give either -v or -q" in invoke("presets", "-v", "-q", code=2)


def test_help_imports_nothing_heavy() -> None:
    program = (
        "import sys; from worker.cli.app import cli\n"
        "try: cli(['--help'], prog_name='x')\n"
        "except SystemExit: pass\n"
        "heavy = {'celery', 'kombu', 'redis', 'pydantic', 'torch', 'PIL', 'yaml', 'rich'}\n"
        "print('heavy:', sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "heavy: []"


def test_commands_never_import_torch() -> None:
    program = (
        "import importlib, pkgutil, sys, worker.cli\n"
        "import worker.worker, worker.local.local_fleet, worker.local.flower\n"
        "for module in pkgutil.walk_packages(worker.cli.__path__, 'worker.cli.'):\n"
        "    importlib.import_module(module.name)\n"
        "heavy = {'torch', 'diffusers', 'transformers', 'peft', 'numpy'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_presets_are_listed_and_shown(tmp_path: Path) -> None:
    listed = json.loads(run("presets", "--json", home=tmp_path).stdout)
    assert "flux_lora_1x40gb" in listed
    # The one with a long summary.
    shown = yaml.safe_load(run("presets", "flux_1x24gb", home=tmp_path).stdout)
    assert shown == preset("flux_1x24gb")
    assert "there is no preset 'x'" in run("presets", "x", home=tmp_path, code=2).stderr


def test_options_are_listed_by_type(tmp_path: Path) -> None:
    listed = json.loads(run("options", "--json", home=tmp_path).stdout)
    assert set(listed) == set(TrainingType)
    only = json.loads(run("options", "SDXL_LORA", "--format", "json", home=tmp_path).stdout)
    assert only == {"SDXL_LORA": listed["SDXL_LORA"]}
    [rank] = [o for o in only["SDXL_LORA"]["options"] if o["path"] == "lora_rank_dim"]
    assert (rank["type"], rank["default"], rank["required"]) == (
        "whole number above 0 to 1024",
        "4",
        False,
    )
    shown = " ".join(run("options", "FLUX_LORA", home=tmp_path, COLUMNS="200").stdout.split())
    assert "timestep_sampler" in shown
    assert "with optimizer.optimizer_type: Prodigy" in shown
    assert "'X' is not a training type" in run("options", "X", home=tmp_path, code=2).stderr


@pytest.mark.parametrize(
    "command",
    ["--help", "presets", "options --format markdown", "engines", "options", "config show"],
)
def test_a_broken_pipe_ends_quietly(command: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    program = [sys.executable, "-P", "-m", "worker", *command.split()]
    with os.fdopen(writer, "wb") as pipe:
        done = subprocess.run(program, stdout=pipe, stderr=subprocess.PIPE, check=False)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize("streams", [("stdout",), ("stderr",), ("stdout", "stderr")])
def test_a_broken_pipe_hides_no_error(streams: tuple[str, ...]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    program = [sys.executable, "-P", "-m", "worker", "presets", "x", "-v"]
    with os.fdopen(writer, "wb") as pipe:
        closed: dict[str, Any] = dict.fromkeys(streams, pipe)
        assert subprocess.run(program, check=False, **closed).returncode == 2


def test_a_file_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    shown = run("demo", "--home", "/dev/null/home", home=tmp_path, code=17).stderr
    assert shown == "error: cannot use /dev/null/home: Not a directory\n"


def test_version_is_printed(invoke: Invoke) -> None:
    assert invoke("--version") == f"training-worker {version('training-worker')}\n"


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("presets x", "there is no preset 'x'"),
        ("options X", "'X' is not a training type; use SDXL_LORA"),
        ("options --format csv", "csv"),
        ("simulate missing.csv", "cannot read missing.csv: No such file or directory"),
        ("completion tcsh", "Invalid value for 'bash|zsh|fish'"),
        ("cache prune --max-size big", "'big' is not a size; write it like 500GB"),
        ("cache prune --unused-days nan", "Invalid value for '--unused-days'"),
        ("cache prune --unused-days 1e9", "Invalid value for '--unused-days'"),
        ("simulate fleet.csv --load nan", "Invalid value for '--load'"),
        ("simulate fleet.csv --load inf", "inf is not a finite number"),
        ("worker --exit-when-idle inf", "inf is not a finite number"),
        ("list --limit 99999999999999999999", "Invalid value for '--limit'"),
        ("drain", "name the workers to drain, or give --all"),
        ("drain gpu@here --all", "name the workers to drain, or give --all"),
        ("drain gpu@here", "there is no live worker gpu@here; live workers: none"),
        ("dead-letter replay", "name the jobs, or give --all"),
        ("dead-letter discard x --all", "name the jobs, or give --all"),
        ("keys create me", "give either --tenant or --operator"),
        ("contract /dev/null/x", "cannot write to /dev/null/x: Not a directory"),
        ("no-such-command", "No such command 'no-such-command'"),
    ],
)
@pytest.mark.usefixtures("redis_client")
def test_usage_errors_exit_with_2(
    invoke: Invoke, broker_url: str, command: str, message: str
) -> None:
    shown = invoke(*command.split(), code=2, TRAINING_BROKER_URL=broker_url)
    assert message in " ".join(shown.split())


@pytest.mark.usefixtures("redis_client")
def test_other_errors_keep_their_exit_codes(invoke: Invoke, broker_url: str) -> None:
    settings = {"TRAINING_BROKER_URL": broker_url}
    shown = invoke("submit", "none.yaml", code=17, **settings)
    assert shown == "error: cannot read the job file none.yaml: No such file or directory\n"
    for command in ("status", "cancel", "pause", "watch"):
        error = json.loads(invoke(command, "x", "--json", code=11, **settings))["error"]
        assert error["code"] == "unknown_job"
    assert "job x is not" in invoke("dead-letter", "discard", "x", code=18, **settings)


def test_wrong_settings_are_one_json_error(invoke: Invoke) -> None:
    error = json.loads(invoke("list", "--json", code=2, TRAINING_JOB_TTL="x"))["error"]
    assert error["code"] == "usage"
    assert "TRAINING_JOB_TTL: " in error["message"]


def test_options_are_printed_as_markdown(tmp_path: Path) -> None:
    page = (Path(__file__).parents[3] / "docs" / "reference" / "options.md").read_text("utf-8")
    assert run("options", "--format", "markdown", home=tmp_path).stdout == page


def test_route_shows_reason_and_memory_parts(tmp_path: Path, job_file: Path) -> None:
    shown: dict[str, Any] = json.loads(run("route", str(job_file), "--json", home=tmp_path).stdout)
    assert shown["queue"] == "gpu.40gb"
    assert sum(shown["parts_gib"].values()) == pytest.approx(shown["needed_gib"], abs=0.05)
    assert "FLUX_LORA never runs below 40gb" in " ".join(
        run("route", str(job_file), home=tmp_path).stdout.split()
    )


def test_gpus_are_listed_with_their_classes(tmp_path: Path) -> None:
    listed = json.loads(run("gpus", "--json", home=tmp_path, TRAINING_GPUS="80gb").stdout)
    assert [gpu["memory_class"] for gpu in listed] == ["80gb"]
    shown = run("gpus", home=tmp_path, code=7, TRAINING_GPUS="81gb").stderr
    assert "'81gb' is not a memory class" in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--queues", "gpu.40gb"], "a worker without --gpu cannot serve 'gpu.40gb', only cpu"),
        (
            ["--queues", "gpu.40gb", "--gpu", "EMULATED-24gb-0"],
            "GPU EMULATED-24gb-0 cannot serve 'gpu.40gb'",
        ),
    ],
)
def test_a_worker_refuses_queues_it_cannot_serve(
    tmp_path: Path, broker_url: str, arguments: list[str], message: str
) -> None:
    settings = {"TRAINING_BROKER_URL": broker_url, "TRAINING_GPUS": "24gb"}
    assert message in run("worker", *arguments, home=tmp_path, code=2, **settings).stderr


def test_an_unreachable_broker_is_reported(tmp_path: Path) -> None:
    url = "redis://127.0.0.1:9/0"
    shown = run("list", home=tmp_path, code=6, TRAINING_BROKER_URL=url).stderr
    assert "the broker does not answer" in shown


def test_a_lost_broker_is_reported(invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    def lose(*_: object) -> None:
        raise redis.ConnectionError("reset by peer")

    monkeypatch.setattr("worker.cli.client.client_of", lose)
    assert "the broker is unavailable: reset by peer" in invoke("list", code=6)


def test_console_needs_a_broker(tmp_path: Path) -> None:
    assert "there is no broker" in run("console", home=tmp_path, code=6).stderr
    url = "redis://127.0.0.1:9/0"
    shown = run("console", home=tmp_path, code=6, TRAINING_BROKER_URL=url).stderr
    assert "the broker does not answer" in shown


def test_wrong_settings_are_named(
    tmp_path: Path,
) -> None:
    wrong = {"TRAINING_GPU_PRICES": "25gb=1", "TRAINING_CONSOLE_URL": "gpu.example.org"}
    shown = run("list", home=tmp_path, code=2, **wrong).stderr
    assert all(name in shown for name in wrong)


def test_a_dry_run_reports_model_and_dataset_together(tmp_path: Path, job_file: Path) -> None:
    document = with_values(data_loader__dataset__dataset_dir="images")
    job_file.write_text(yaml.safe_dump(document), "utf-8")
    shown = run("submit", str(job_file), "--dry-run", "--json", home=tmp_path, code=5).stdout
    report = json.loads(shown)
    assert report["error"]["code"] == "invalid_model"
    # A relative path starts at the job file.
    files = [finding["file"] for finding in report["dataset"]["findings"]]
    assert str(job_file.parent / "images") in files


def test_setting_durations_are_seconds_or_iso_8601(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRAINING_SHUTDOWN_TIMEOUT", "2.5")
    monkeypatch.setenv("TRAINING_JOB_TTL", "P2D")
    settings = Settings()
    assert settings.shutdown_timeout.total_seconds() == 2.5
    assert settings.job_ttl.days == 2
