import subprocess
import sys

import yaml

from tests.deploy.manifests import ROOT

WORKFLOW = ROOT / ".github" / "workflows" / "checks.yml"


def test_workflow_follows_its_schema() -> None:
    schema = ["--builtin-schema", "vendor.github-workflows"]
    command = [sys.executable, "-m", "check_jsonschema", *schema, str(WORKFLOW)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_workflow_runs_the_documented_command() -> None:
    [job] = yaml.safe_load(WORKFLOW.read_text("utf-8"))["jobs"].values()
    assert [step["run"] for step in job["steps"] if "run" in step] == ["bash tests/run.sh"]
    assert job["strategy"]["matrix"]["python"] == ["3.11", "3.12", "3.13"]
    for page in ("README.md", "CONTRIBUTING.md", ".ci/run"):
        assert "bash tests/run.sh" in (ROOT / page).read_text("utf-8")
