"""The rules of ``deploy/prometheus`` as a PrometheusRule for Kubernetes.

``python -P -m tests.docs.reference`` writes it.
"""

import yaml

from tests.promql import DEPLOY, RULES

TARGET = DEPLOY / "k8s" / "monitoring" / "rules.yaml"
_HEADER = (
    "# The rules of deploy/prometheus, for the Prometheus operator. Generated from them by\n"
    "#   python -P -m tests.docs.reference\n"
)


def manifest() -> str:
    """Return the manifest's text."""
    groups = []
    for path in RULES:
        groups += yaml.safe_load(path.read_text("utf-8"))["groups"]
    for rule in (rule for group in groups for rule in group["rules"]):
        rule["expr"] = rule["expr"].strip()
    document = {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": "training"},
        "spec": {"groups": groups},
    }
    return _HEADER + yaml.safe_dump(document, sort_keys=False, width=1000)
