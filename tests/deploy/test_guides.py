"""The commands of the guides run unchanged, except blocks whose first line states a need."""

import os
import re
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from tests.deploy.manifests import ROOT
from tests.deploy.servers import PATIENCE_S
from tests.waiting import wait_until
from worker.cli.app import cli
from worker.miniature.dataset import draw_dataset
from worker.supervision.process import spawn

BLOCK = re.compile(r"^```(bash|yaml)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
COMMAND_LINE = re.compile(
    r"(?:^|bin/|-- |restored |exec \w+ )training-worker (\w[^#\n&|>)]*)", re.MULTILINE
)
NEEDS = "# needs "
SEPARATE_TERMINAL = "# in a separate terminal\n"
GUIDES = (
    "quickstart",
    "guides/one-gpu",
    "guides/ten-hosts",
    "guides/kubernetes",
    "guides/backup",
    "guides/capacity",
    "guides/invoke-training",
)


def blocks(guide: str) -> list[tuple[str, str]]:
    """Return the commands and files of a guide that can run here, with their languages."""
    text = (ROOT / "docs" / f"{guide}.md").read_text("utf-8")
    matches = BLOCK.findall(text)
    assert text.count("```") == 2 * len(matches), "a block has another language or none"
    return [(language, body) for language, body in matches if not body.startswith(NEEDS)]


class Shell:
    """Shell of a user, in a folder that looks like the project's."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        programs = folder / "programs"
        programs.mkdir(parents=True)
        for name, command in {"training-worker": "-P -m worker", "python": ""}.items():
            path = programs / name
            path.write_text(f'#!/bin/sh\nexec "{sys.executable}" {command} "$@"\n', "utf-8")
            path.chmod(path.stat().st_mode | stat.S_IXUSR)
        (folder / "deploy").mkdir()
        for name in ("secrets.sh", "certificates.sh", "valkey", "k8s"):
            (folder / "deploy" / name).symlink_to(ROOT / "deploy" / name)
        draw_dataset(folder / "images")
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("TRAINING_")}
        self.env = {
            **inherited,
            "PATH": f"{programs}:{inherited['PATH']}",
            "PYTHONPATH": str(ROOT),
            "TRAINING_HOME": str(folder / "home"),
            "TRAINING_FLOWER_PORT": "0",
            "TRAINING_CONSOLE_PORT": "0",
        }

    def follow(self, guide: str) -> str:
        """Run the blocks of a guide, and return their output."""
        printed = ""
        for language, body in blocks(guide):
            if language == "yaml":
                name = re.match(r"# (\S+\.yaml)\n", body)
                if name is not None:
                    (self.folder / name[1]).write_text(body, "utf-8")
            elif not body.startswith(SEPARATE_TERMINAL):
                printed += self.run(body)
        return printed

    def run(self, script: str) -> str:
        """Run commands, each of which must succeed, and return their output."""
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", script],
            cwd=self.folder,
            env=self.env,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{script}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    @contextmanager
    def in_background(self, guide: str) -> Iterator[None]:
        """Run the block that a guide wants in a separate terminal, until Ctrl-C."""
        [script] = [body for _, body in blocks(guide) if body.startswith(SEPARATE_TERMINAL)]
        log = self.folder / "background.log"
        with log.open("wb") as output:
            process = spawn(
                [
                    "bash",
                    "-c",
                    f'cd "{self.folder}" && exec env {script.removeprefix(SEPARATE_TERMINAL)}',
                ],
                env=self.env,
                stdout=output,
                stderr=output,
            )
        try:
            wait_until(
                lambda: "ready:" in log.read_text("utf-8") or process.poll() is not None,
                timeout_s=PATIENCE_S,
                description=f"{script} is ready",
            )
            assert process.poll() is None, log.read_text("utf-8")
            yield
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(PATIENCE_S)


@pytest.mark.parametrize("guide", GUIDES)
def test_guide_states_what_its_blocks_need(guide: str) -> None:
    text = (ROOT / "docs" / f"{guide}.md").read_text("utf-8")
    for _, body in BLOCK.findall(text):
        if body.startswith(NEEDS):
            assert re.match(r"# needs \w", body)
    assert blocks(guide)


def test_quickstart_trains_and_its_backup_restores_the_job(tmp_path: Path) -> None:
    shell = Shell(tmp_path / "here")
    with shell.in_background("quickstart"):
        output = shell.follow("quickstart")
    assert "published: " in output
    [job] = re.findall(r"^job (\w+)$", output, re.MULTILINE)
    scripts = [body for _, body in blocks("guides/backup")]
    *before, after = [script for script in scripts if not script.startswith(SEPARATE_TERMINAL)]
    for script in before:
        shell.run(script)
    with shell.in_background("guides/backup"):
        assert job in shell.run(after)


def test_other_guides_run(tmp_path: Path) -> None:
    Shell(tmp_path / "one-gpu").follow("guides/one-gpu")
    routed = Shell(tmp_path / "invoke-training").follow("guides/invoke-training")
    assert "gpu.40gb.invoke-training" in routed

    hosts = Shell(tmp_path / "ten-hosts")
    hosts.follow("guides/ten-hosts")
    url = (hosts.folder / "deploy/secrets/worker/TRAINING_BROKER_URL").read_text("utf-8")
    assert re.fullmatch(
        r"rediss://worker:\w{48}@broker\.example:6379/0\?ssl_ca_certs=/run/secrets/ca\.crt", url
    )
    assert (hosts.folder / "deploy/secrets/broker.crt").exists()

    cluster = Shell(tmp_path / "kubernetes")
    cluster.follow("guides/kubernetes")
    secrets = (cluster.folder / "secrets.yaml").read_text("utf-8")
    assert secrets.count("kind: Secret") == 5

    plan = Shell(tmp_path / "capacity")
    plan.follow("guides/capacity")
    assert (plan.folder / "larger.json").stat().st_size


def test_documented_commands_and_options_exist() -> None:
    root: Any = get_command(cli)
    seen = 0
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        for _, body in BLOCK.findall(path.read_text("utf-8")):
            for line in COMMAND_LINE.findall(body):
                command, words = root, line.replace("`", " ").split()
                while words and words[0] in getattr(command, "commands", {}):
                    command = command.commands[words.pop(0)]
                assert command is not root, f"{path.name}: training-worker {line}"
                known = {
                    name
                    for param in command.params
                    for name in (*param.opts, *param.secondary_opts)
                }
                options = {word for word in words if word.startswith("--") and len(word) > 2}
                assert options <= known | {"--help"}, f"{path.name}: training-worker {line}"
                seen += 1
    assert seen > 30
