"""promtool checks the files of Prometheus, if it is installed."""

import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.promql import DEPLOY, RULES

GRAFANA = DEPLOY / "grafana"
PROMTOOL = shutil.which("promtool")
HERE = Path(__file__).parent


@pytest.mark.skipif(PROMTOOL is None, reason="no promtool")
@pytest.mark.parametrize(
    "arguments",
    [
        ("check", "config", DEPLOY / "prometheus" / "prometheus.yml"),
        ("test", "rules", HERE / "alerts.test.yml"),
    ],
    ids=["configuration", "alerts"],
)
def test_promtool_accepts_the_files(arguments: tuple[object, ...]) -> None:
    assert PROMTOOL is not None
    done = subprocess.run(
        [PROMTOOL, *map(str, arguments)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_configuration_reads_all_rules_and_scrapes_the_exporter() -> None:
    config = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text("utf-8"))
    assert config["rule_files"] == ["rules/*.yml"]
    assert {path.stem for path in RULES} == {"alerts", "recording"}
    assert [job["job_name"] for job in config["scrape_configs"]] == ["training", "flower"]


def test_grafana_has_a_source_and_the_dashboards() -> None:
    folder = GRAFANA / "provisioning"
    [source] = yaml.safe_load((folder / "datasources" / "prometheus.yml").read_text("utf-8"))[
        "datasources"
    ]
    assert (source["type"], source["isDefault"]) == ("prometheus", True)
    [provider] = yaml.safe_load((folder / "dashboards" / "training.yml").read_text("utf-8"))[
        "providers"
    ]
    path = provider["options"]["path"]
    assert path in (DEPLOY.parent / "docs" / "guides" / "monitoring.md").read_text("utf-8")
