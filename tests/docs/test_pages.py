"""What the README and the pages state about jobs and commands is true."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from routing.policy import TrainingType
from tasks.errors import EXIT_CODES
from tasks.jobs.job import parse_job
from tasks.jobs.presets import preset_names
from tests.docs.reference import FOLDER, ROOT
from tests.worker.cli.test_cli import COMMANDS

README = (ROOT / "README.md").read_text("utf-8")
JOBS = (ROOT / "docs" / "guides" / "jobs.md").read_text("utf-8")
DATASET = {"dataset": {"type": "IMAGE_CAPTION_DIR_DATASET", "dataset_dir": "/images"}}
LINK = re.compile(r"\]\(([^)\s#]+)(?:#[^)\s]*)?\)")
EXAMPLE_JOB = re.compile(r"```yaml\n(.*?)```", re.DOTALL)


def test_readme_job_is_a_flux_lora() -> None:
    [block] = EXAMPLE_JOB.findall(README)
    assert parse_job(yaml.safe_load(block)).training.type == "FLUX_LORA"


def test_jobs_guide_has_a_job_of_each_kind() -> None:
    jobs = [yaml.safe_load(block) for block in EXAMPLE_JOB.findall(JOBS)]
    assert [parse_job(job).training.type for job in jobs] == [
        "FLUX_LORA",
        "SDXL_TEXTUAL_INVERSION",
        "SDXL_LORA",
        "FLUX_LORA",  # with publish_to
    ]
    for name in preset_names():
        base = jobs[1] if "inversion" in name else {"training": {"data_loader": DATASET}}
        queue = parse_job({**base, "preset": name}).route().gpu_queue
        assert re.search(rf"^\| `{queue}` .*`{name}`", JOBS, re.MULTILINE), name
    for training_type in TrainingType:
        assert f"| `{training_type}` |" in JOBS


@pytest.mark.parametrize("command", COMMANDS)
def test_command_is_documented(command: str) -> None:
    page = (FOLDER / "commands.md").read_text("utf-8")
    assert re.search(rf"^## {command}$", page, re.MULTILINE)


def test_every_exit_code_is_documented() -> None:
    page = (FOLDER / "commands.md").read_text("utf-8")
    codes = {int(number) for number in re.findall(r"^\| (\d+) \|", page, re.MULTILINE)}
    assert codes == {0, *EXIT_CODES.values()}


def test_every_extra_is_documented() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    page = (ROOT / "docs" / "guides" / "install.md").read_text("utf-8")
    rows = "".join(re.findall(r"^\|([^|]*)\|", page, re.MULTILINE))
    assert set(re.findall(r"`(\w+)`", rows)) == set(project["optional-dependencies"])


def test_links_of_pages_outside_of_the_site_lead_to_files() -> None:
    pages = [page for part in ("", "deploy", "examples") for page in (ROOT / part).glob("*.md")]
    links = [(page, link) for page in pages for link in LINK.findall(page.read_text("utf-8"))]
    files = [(page, link) for page, link in links if ":" not in link]
    assert len(files) > 20
    dead = [(page.name, link) for page, link in files if not (page.parent / link).exists()]
    assert dead == []


def test_navigation_has_every_page() -> None:
    config = yaml.safe_load((ROOT / "mkdocs.yml").read_text("utf-8"))
    pages = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    assert sorted(_pages_of(config["nav"])) == sorted(pages)


def test_site_builds_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet"]
    config = ["--config-file", str(ROOT / "mkdocs.yml"), "--site-dir", str(tmp_path)]
    built = subprocess.run([*command, *config], capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    pages = list(tmp_path.rglob("*.html"))
    assert len(pages) > len(list((ROOT / "docs").rglob("*.md"))) - 1
    for page in pages:
        text = page.read_text("utf-8")
        assert 'src="http' not in text, page
        assert "fonts.g" not in text, page


def _pages_of(entry: object) -> list[str]:
    if isinstance(entry, str):
        return [entry]
    children = entry.values() if isinstance(entry, dict) else entry
    assert not isinstance(children, str)
    return [page for child in children for page in _pages_of(child)]  # type: ignore[attr-defined]
