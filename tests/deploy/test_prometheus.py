"""promtool checks the files of Prometheus, if it is installed."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.deploy import prometheus_rule
from tests.deploy.manifests import compose, documents
from tests.promql import DEPLOY, RULES, rules

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


def test_expected_alerts_have_the_texts_of_their_rules() -> None:
    """As far as that can be checked without promtool."""
    texts = {rule["alert"]: rule["annotations"] for _, rule in rules() if "alert" in rule}
    document = yaml.safe_load((HERE / "alerts.test.yml").read_text("utf-8"))
    for case in document["tests"]:
        for alert in case["alert_rule_test"]:
            for expected in alert["exp_alerts"]:
                for name, text in expected["exp_annotations"].items():
                    template = re.escape(texts[alert["alertname"]][name])
                    assert re.fullmatch(re.sub(r"\\{\\{.*?\\}\\}", ".*", template), text), text


def test_configuration_reads_all_rules_and_scrapes_the_exporter() -> None:
    config = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text("utf-8"))
    assert config["rule_files"] == ["rules/*.yml"]
    assert {path.stem for path in RULES} == {"alerts", "recording"}
    assert [job["job_name"] for job in config["scrape_configs"]] == ["training", "flower"]


def test_kubernetes_has_the_same_rules() -> None:
    stale = "rules.yaml is stale; run: python -P -m tests.docs.reference"
    assert prometheus_rule.TARGET.read_text("utf-8") == prometheus_rule.manifest(), stale
    [monitor] = documents(DEPLOY / "k8s" / "monitoring" / "metrics.yaml")
    [endpoint] = monitor["spec"]["endpoints"]
    assert endpoint["relabelings"] == [{"targetLabel": "job", "replacement": "training"}]
    [service] = [
        each
        for each in documents(DEPLOY / "k8s" / "base" / "metrics.yaml")
        if each["kind"] == "Service"
    ]
    assert monitor["spec"]["selector"]["matchLabels"] == service["metadata"]["labels"]
    assert endpoint["port"] in {port["name"] for port in service["spec"]["ports"]}


def test_alertmanager_sends_every_alert_to_a_receiver() -> None:
    config = yaml.safe_load((DEPLOY / "prometheus" / "alertmanager.yml").read_text("utf-8"))
    receivers = {each["name"]: each for each in config["receivers"]}
    routes = [config["route"], *config["route"]["routes"]]
    assert {route["receiver"] for route in routes} == receivers.keys()
    [webhook] = receivers[config["route"]["receiver"]]["webhook_configs"]
    service = compose()["services"]["alertmanager"]
    assert webhook["url_file"].removeprefix("/run/secrets/") in service["secrets"]
    prometheus = yaml.safe_load(compose()["configs"]["prometheus.yml"]["content"])
    [manager] = prometheus["alerting"]["alertmanagers"]
    assert manager["static_configs"] == [{"targets": ["alertmanager:9093"]}]


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
